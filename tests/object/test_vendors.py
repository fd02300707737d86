"""Bucket URLs: which host is asked, how, and with which region."""

import pytest

from jfs.errors import UserError
from jfs.object.connections import Tls
from jfs.object.vendors import VENDORS, parse_place


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "MINIO_REGION", "JFS_S3_VHOST_STYLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("kind", "url", "origin", "path", "region"),
    [
        # Amazon's own
        ("s3", "https://b.s3.eu-west-1.amazonaws.com", "https://b.s3.eu-west-1.amazonaws.com", "/", "eu-west-1"),
        ("s3", "b.s3.eu-west-1.amazonaws.com", "https://b.s3.eu-west-1.amazonaws.com", "/", "eu-west-1"),
        ("s3", "https://b.s3-eu-west-1.amazonaws.com", "https://b.s3.eu-west-1.amazonaws.com", "/", "eu-west-1"),
        ("s3", "https://s3.eu-west-1.amazonaws.com/b", "https://b.s3.eu-west-1.amazonaws.com", "/", "eu-west-1"),
        ("s3", "https://b.s3.amazonaws.com", "https://b.s3.us-east-1.amazonaws.com", "/", "us-east-1"),
        ("s3", "https://b.s3-external-1.amazonaws.com", "https://b.s3.us-east-1.amazonaws.com", "/", "us-east-1"),
        (
            "s3",
            "https://b.s3.dualstack.us-west-2.amazonaws.com",
            "https://b.s3.dualstack.us-west-2.amazonaws.com",
            "/",
            "us-west-2",
        ),
        (
            "s3",
            "https://b.s3.cn-north-1.amazonaws.com.cn",
            "https://b.s3.cn-north-1.amazonaws.com.cn",
            "/",
            "cn-north-1",
        ),
        ("s3", "https://x.y.s3.us-west-2.amazonaws.com", "https://s3.us-west-2.amazonaws.com", "/x.y/", "us-west-2"),
        (
            "s3",
            "https://b.bucket.vpce-1-a.s3.us-east-2.vpce.amazonaws.com",
            "https://bucket.vpce-1-a.s3.us-east-2.vpce.amazonaws.com",
            "/b/",
            "us-east-2",
        ),
        # compatible ones
        ("s3", "http://127.0.0.1:9000/b", "http://127.0.0.1:9000", "/b/", "us-east-1"),
        ("s3", "127.0.0.1:9000/b/", "http://127.0.0.1:9000", "/b/", "us-east-1"),
        ("s3", "https://b.endpoint.example", "https://endpoint.example", "/b/", "us-east-1"),
        ("s3", "b.endpoint.example", "http://endpoint.example", "/b/", "us-east-1"),
        (
            "s3",
            "https://b.ns.compat.objectstorage.eu-zurich-1.oraclecloud.com",
            "https://ns.compat.objectstorage.eu-zurich-1.oraclecloud.com",
            "/b/",
            "eu-zurich-1",
        ),
        ("s3", "https://b.s3.gra.cloud.ovh.net", "https://s3.gra.cloud.ovh.net", "/b/", "gra"),
        ("minio", "http://h:9000/b", "http://h:9000", "/b/", "us-east-1"),
        ("minio", "h:9000/minio/b", "http://h:9000", "/b/", "us-east-1"),
        ("minio", "https://h/b?region=r1", "https://h", "/b/", "r1"),
        # the vendors
        ("oss", "https://b.oss-cn-x.aliyuncs.com", "https://b.s3.oss-cn-x.aliyuncs.com", "/", "cn-x"),
        ("oss", "b.oss-cn-x-internal.aliyuncs.com", "https://b.s3.oss-cn-x-internal.aliyuncs.com", "/", "cn-x"),
        ("cos", "https://b-1.cos.ap-x.myqcloud.com", "https://b-1.cos.ap-x.myqcloud.com", "/", "ap-x"),
        ("obs", "https://b.obs.cn-x.myhuaweicloud.com", "https://b.obs.cn-x.myhuaweicloud.com", "/", "cn-x"),
        ("tos", "https://b.tos-cn-x.volces.com", "https://b.tos-s3-cn-x.volces.com", "/", "cn-x"),
        ("tos", "https://b.tos-s3-cn-x.ivolces.com", "https://b.tos-s3-cn-x.ivolces.com", "/", "cn-x"),
        ("ks3", "https://b.ks3-cn-beijing.ksyuncs.com", "https://b.ks3-cn-beijing.ksyuncs.com", "/", "BEIJING"),
        (
            "ks3",
            "https://b.ks3-cn-beijing-internal.ksyuncs.com",
            "https://b.ks3-cn-beijing-internal.ksyuncs.com",
            "/",
            "BEIJING",
        ),
        ("wasabi", "https://b.s3.eu-1.wasabisys.com", "https://b.s3.eu-1.wasabisys.com", "/", "eu-1"),
        ("gs", "gs://b", "https://storage.googleapis.com", "/b/", "auto"),
        ("gs", "b.us-east1", "https://storage.googleapis.com", "/b/", "auto"),
        ("b2", "https://b.s3.us-4.backblazeb2.com", "https://s3.us-4.backblazeb2.com", "/b/", "us-4"),
        ("scw", "https://b.s3.fr-par.scw.cloud", "https://b.s3.fr-par.scw.cloud", "/", "fr-par"),
        ("space", "https://b.nyc3.digitaloceanspaces.com", "https://b.nyc3.digitaloceanspaces.com", "/", "nyc3"),
        ("eos", "https://b.eos-1.cmecloud.cn", "https://eos-1.cmecloud.cn", "/b/", "us-east-1"),
        ("oos", "https://b.oos-hz.ctyunapi.cn", "https://oos-hz.ctyunapi.cn", "/b/", "hz"),
        ("bos", "https://b.bj.bcebos.com", "https://s3.bj.bcebos.com", "/b/", "bj"),
        ("qiniu", "https://b.s3-cn-east-1.qiniucs.com", "https://s3-cn-east-1.qiniucs.com", "/b/", "cn-east-1"),
        ("qingstor", "https://b.pek3a.qingstor.com", "https://s3.pek3a.qingstor.com", "/b/", "pek3a"),
        # a vendor's software in a private cloud
        ("oss", "http://10.0.0.1:80/b", "http://10.0.0.1:80", "/b/", "us-east-1"),
        ("obs", "https://b.obs.cloud.example", "https://b.obs.cloud.example", "/", "us-east-1"),
    ],
)
def test_places(kind: str, url: str, origin: str, path: str, region: str) -> None:
    place = parse_place(kind, url)
    assert (f"{place.scheme}://{place.host}", place.path, place.region) == (origin, path, region)
    assert place.bucket in ("b", "b-1", "x.y")


def test_a_bucket_alone_is_amazons_and_its_region_is_asked_for() -> None:
    place = parse_place("s3", "mybucket")
    assert (place.scheme, place.endpoint, place.bucket, place.region) == ("https", "s3.amazonaws.com", "mybucket", "")
    assert place.describe() == "s3://mybucket/"


def test_describe() -> None:
    assert parse_place("s3", "http://h:9000/b").describe() == "s3://h:9000/b/"
    assert parse_place("gs", "gs://b").describe() == "gs://b/"


def test_the_environments_region_counts_where_the_url_tells_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "r2")
    assert parse_place("s3", "http://h/b").region == "r2"
    monkeypatch.setenv("AWS_REGION", "r1")
    assert parse_place("s3", "http://h/b").region == "r1"
    assert parse_place("s3", "https://b.s3.eu-1.amazonaws.com").region == "eu-1"
    assert parse_place("minio", "http://h/b").region == "us-east-1"
    monkeypatch.setenv("MINIO_REGION", "m1")
    assert parse_place("minio", "http://h/b").region == "m1"


def test_the_bucket_in_the_host_where_the_environment_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, host in [("", "h.example"), ("0", "h.example"), ("false", "h.example"), ("1", "b.h.example")]:
        monkeypatch.setenv("JFS_S3_VHOST_STYLE", value)
        assert parse_place("s3", "http://h.example/b").host == host
        assert parse_place("s3", "http://b.h.example").host == host
        assert parse_place("oos", "https://b.oos-hz.ctyunapi.cn").host == "oos-hz.ctyunapi.cn"


def test_parameters() -> None:
    place = parse_place(
        "s3",
        "https://h/b?tls-insecure-skip-verify=true&ca-certs=/ca.pem&ssl-cert=/c.pem&ssl-key=/k.pem&disable-checksum=True"
        "&disable-100-continue=true",
    )
    assert place.tls == Tls(skip_verify=True, ca_certs="/ca.pem", cert="/c.pem", key="/k.pem")
    assert not place.checksum
    assert parse_place("s3", "https://h/b?disable-checksum=false").checksum


def test_old_vendors_list_in_the_old_way() -> None:
    assert sorted(kind for kind, vendor in VENDORS.items() if vendor.list_v1) == [
        *("bos", "cos", "eos", "ks3", "obs", "oos", "qingstor", "qiniu")
    ]
    assert parse_place("obs", "https://b.obs.cn-x.myhuaweicloud.com").list_v1


@pytest.mark.parametrize(
    ("kind", "url", "message"),
    [
        ("s3", "", "https://BUCKET.s3.REGION.amazonaws.com or http://ENDPOINT/BUCKET is wanted"),
        ("s3", "ftp://h/b", "invalid s3 bucket"),
        ("s3", "https://s3.amazonaws.com", "invalid s3 bucket"),
        ("s3", "http://127.0.0.1:9000", "http://ENDPOINT/BUCKET is wanted"),
        ("s3", "http://[::1]:9000", "http://ENDPOINT/BUCKET is wanted"),
        ("minio", "http://h:9000", "http://HOST:9000/BUCKET"),
        ("oss", "mybucket", "https://BUCKET.oss-REGION.aliyuncs.com is wanted"),
        ("cos", "https://b", "https://BUCKET-APPID.cos.REGION.myqcloud.com is wanted"),
        ("s3", "http://key:secret@h/b", "use --access-key and --secret-key"),
        ("s3", "http://h/b?frob=1", "unknown parameter 'frob'"),
        ("s3", "http://h/b?tls-insecure-skip-verify=maybe", "must be true or false, not 'maybe'"),
    ],
)
def test_bad_urls(kind: str, url: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        parse_place(kind, url)
    assert message in str(raised.value)
    assert "key:secret" not in str(raised.value)
