"""Where a bucket URL points: the vendors that speak S3, what their endpoints look like, and how they want to be asked."""

import os
import re
from collections.abc import Callable, Mapping
from typing import Final, NoReturn
from urllib.parse import parse_qsl, urlsplit

import msgspec

from jfs.errors import UserError
from jfs.object.connections import Tls

DEFAULT_REGION: Final = "us-east-1"
FALSE: Final = frozenset(("", "0", "f", "false"))
TRUE: Final = frozenset(("1", "t", "true"))


class Vendor(msgspec.Struct, frozen=True):
    """How one kind of storage is reached.

    `form` is what a bucket URL looks like.  An endpoint that matches `endpoint` gives the region (group `region`), and its S3 face is
    at `face`, made of the match's groups; one that does not match is taken as it is.  `virtual`: the bucket is a part of the
    host name (None: only where JFS_S3_VHOST_STYLE says so).  `list_v1`: no ListObjectsV2, or a broken one.  `keys`: the
    environment variables of access key, secret key and token; none: the AWS default chain.
    """

    form: str
    endpoint: str = ""
    face: str = ""
    virtual: bool | None = None
    list_v1: bool = False
    keys: tuple[str, ...] = ()
    default_scheme: str = "https"


VENDORS: Final = {
    "s3": Vendor("https://BUCKET.s3.REGION.amazonaws.com or http://ENDPOINT/BUCKET"),
    "minio": Vendor(
        "http://HOST:9000/BUCKET[?region=R]", keys=("MINIO_ACCESS_KEY", "MINIO_SECRET_KEY"), default_scheme="http"
    ),
    "oss": Vendor(
        "https://BUCKET.oss-REGION.aliyuncs.com",
        endpoint=r"(?:s3\.)?(?P<name>oss-(?P<region>[a-z0-9-]+?)(?:-internal)?)\.aliyuncs\.com",
        face="s3.{name}.aliyuncs.com",
        virtual=True,
        keys=("ALICLOUD_ACCESS_KEY_ID", "ALICLOUD_ACCESS_KEY_SECRET", "SECURITY_TOKEN"),
    ),
    "cos": Vendor(
        "https://BUCKET-APPID.cos.REGION.myqcloud.com",
        endpoint=r"cos\.(?P<region>[a-z0-9-]+)\.(?:myqcloud\.com|tencentcos\.cn)",
        virtual=True,
        list_v1=True,
        keys=("COS_SECRETID", "COS_SECRETKEY"),
    ),
    "obs": Vendor(
        "https://BUCKET.obs.REGION.myhuaweicloud.com",
        endpoint=r"obs\.(?P<region>[a-z0-9-]+)\.myhuaweicloud\.(?:com|eu)",
        virtual=True,
        list_v1=True,
        keys=("HWCLOUD_ACCESS_KEY", "HWCLOUD_SECRET_KEY"),
    ),
    "tos": Vendor(
        "https://BUCKET.tos-REGION.volces.com",
        endpoint=r"tos-(?:s3-)?(?P<region>[a-z0-9-]+)\.(?P<domain>i?volces\.com|i?bytepluses\.com)",
        face="tos-s3-{region}.{domain}",
        virtual=True,
        keys=("TOS_ACCESS_KEY", "TOS_SECRET_KEY"),
    ),
    "ks3": Vendor(
        "https://BUCKET.ks3-REGION.ksyuncs.com",
        endpoint=r"ks3-(?P<region>[a-z0-9-]+?)(?:-internal)?\.(?:ksyun|ksyuncs)\.com",
        virtual=True,
        list_v1=True,
        keys=("KS3_ACCESS_KEY", "KS3_SECRET_KEY"),
    ),
    "wasabi": Vendor(
        "https://BUCKET.s3.REGION.wasabisys.com", endpoint=r"s3\.(?P<region>[a-z0-9-]+)\.wasabisys\.com", virtual=True
    ),
    "gs": Vendor("gs://BUCKET (with an HMAC key)", keys=("GS_ACCESS_KEY_ID", "GS_SECRET_ACCESS_KEY")),
    "b2": Vendor(
        "https://BUCKET.s3.REGION.backblazeb2.com",
        endpoint=r"s3\.(?P<region>[a-z0-9-]+)\.backblazeb2\.com",
        keys=("B2_KEY_ID", "B2_APPLICATION_KEY"),
    ),
    "scw": Vendor(
        "https://BUCKET.s3.REGION.scw.cloud",
        endpoint=r"s3\.(?P<region>[a-z0-9-]+)\.scw\.cloud",
        virtual=True,
        keys=("SCW_ACCESS_KEY", "SCW_SECRET_KEY"),
    ),
    "space": Vendor(
        "https://BUCKET.REGION.digitaloceanspaces.com",
        endpoint=r"(?P<region>[a-z0-9-]+)\.digitaloceanspaces\.com",
        virtual=True,
        keys=("SPACES_ACCESS_KEY_ID", "SPACES_SECRET_ACCESS_KEY"),
    ),
    "eos": Vendor("https://BUCKET.ENDPOINT", list_v1=True, keys=("EOS_ACCESS_KEY", "EOS_SECRET_KEY", "EOS_TOKEN")),
    "oos": Vendor(
        "https://BUCKET.oos-REGION.ctyunapi.cn",
        endpoint=r"oos-(?P<region>[a-z0-9-]+)\.ctyunapi\.cn",
        virtual=False,
        list_v1=True,
        keys=("OOS_ACCESS_KEY", "OOS_SECRET_KEY"),
    ),
    "bos": Vendor(
        "https://BUCKET.REGION.bcebos.com",
        endpoint=r"(?:s3\.)?(?P<region>[a-z0-9-]+)\.bcebos\.com",
        face="s3.{region}.bcebos.com",
        list_v1=True,
        keys=("BDCLOUD_ACCESS_KEY", "BDCLOUD_SECRET_KEY"),
    ),
    "qiniu": Vendor(
        "https://BUCKET.s3-REGION.qiniucs.com",
        endpoint=r"s3[.-](?P<region>[a-z0-9-]+)\.qiniucs\.com",
        virtual=False,
        list_v1=True,
        keys=("QINIU_ACCESS_KEY", "QINIU_SECRET_KEY"),
    ),
    "qingstor": Vendor(
        "https://BUCKET.ZONE.qingstor.com",
        endpoint=r"(?:s3\.)?(?P<region>[a-z0-9-]+)\.qingstor\.com",
        face="s3.{region}.qingstor.com",
        list_v1=True,
        keys=("QINGSTOR_ACCESS_KEY_ID", "QINGSTOR_SECRET_ACCESS_KEY"),
    ),
}

KS3_REGIONS: Final = {
    "cn-beijing": "BEIJING",
    "cn-shanghai": "SHANGHAI",
    "cn-guangzhou": "GUANGZHOU",
    "cn-qingdao": "QINGDAO",
    "jr-beijing": "JR_BEIJING",
    "jr-shanghai": "JR_SHANGHAI",
    "cn-hk-1": "HONGKONG",
    "rus": "RUSSIA",
    "sgp": "SINGAPORE",
}

AWS: Final = re.compile(
    r"s3(?P<fips>-fips)?(?:[.-](?P<dual>dualstack)(?=\.))?(?:[.-](?P<region>[a-z0-9-]+))?\.amazonaws\.com(?P<china>\.cn)?"
)
VPC: Final = re.compile(r".*\.(?P<region>[a-z0-9-]+)\.vpce\.amazonaws\.com(?:\.cn)?")
ADDRESS: Final = re.compile(r"[\d.]+(:\d+)?|\[.*\](:\d+)?")
REGION_IN_HOST: Final = (
    re.compile(r".*\.compat\.objectstorage\.(?P<region>[a-z0-9-]+)\.oraclecloud\.com"),
    re.compile(r"s3\.(?P<region>\w+)(?:\.\w+)?\.cloud\.ovh\.net"),
)


class Place(msgspec.Struct, frozen=True):
    """A bucket: whom to ask, and how.  `region` empty: the server has to be asked for it."""

    kind: str
    scheme: str
    endpoint: str
    bucket: str
    region: str
    virtual: bool = False
    list_v1: bool = False
    checksum: bool = True
    tls: Tls = Tls()

    @property
    def host(self) -> str:
        """The host that requests go to."""
        return f"{self.bucket}.{self.endpoint}" if self.virtual else self.endpoint

    @property
    def path(self) -> str:
        """What stands before a key in a request's path."""
        return "/" if self.virtual else f"/{self.bucket}/"

    def describe(self) -> str:
        if AWS.fullmatch(self.endpoint) or self.kind == "gs":
            return f"{self.kind}://{self.bucket}/"
        return f"{self.kind}://{self.endpoint}/{self.bucket}/"


def parse_place(kind: str, url: str) -> Place:
    """From a kind of storage and its bucket URL.  UserError says what would be right."""
    vendor = VENDORS[kind]
    parts = urlsplit(url if "://" in url else f"{_scheme(kind, vendor, url)}://{url}")
    host, path = parts.netloc, parts.path.strip("/")
    if parts.scheme not in ("http", "https") and (kind, parts.scheme) != ("gs", "gs"):
        _refuse(kind, url)
    if "@" in host:
        raise UserError(f"keys do not belong into the {kind} bucket URL: use --access-key and --secret-key")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    place = Place(kind=kind, scheme=parts.scheme, endpoint=host, bucket="", region="", list_v1=vendor.list_v1)
    if kind == "s3":
        place = _s3(place, path)
    elif kind == "minio":
        place = _in_path(place, path.removeprefix("minio/"))
    elif kind == "gs":
        bucket = host.partition(".")[0]
        place = _set(place, scheme="https", endpoint="storage.googleapis.com", bucket=bucket, region="auto")
    elif path:
        place = _in_path(place, path)
    else:
        place = _in_host(place, vendor)
    alone = not path and ADDRESS.fullmatch(host)  # a server without a bucket
    if alone or not place.bucket or not place.endpoint or "/" in place.bucket:
        _refuse(kind, url)
    return _with_options(place, options)


def _scheme(kind: str, vendor: Vendor, url: str) -> str:
    if kind == "s3" and "." in url.partition("/")[0] and "amazonaws.com" not in url:
        return "http"
    return vendor.default_scheme


def _refuse(kind: str, url: str) -> NoReturn:
    raise UserError(f"invalid {kind} bucket {url!r}: {VENDORS[kind].form} is wanted")


def _set(place: Place, **fields: object) -> Place:
    return msgspec.structs.replace(place, **fields)


def wants_virtual() -> bool:
    """Whether JFS_S3_VHOST_STYLE asks for the bucket in the host name where the vendor leaves the choice."""
    return os.environ.get("JFS_S3_VHOST_STYLE", "").lower() not in FALSE


def _in_path(place: Place, path: str) -> Place:
    """ENDPOINT/BUCKET."""
    bucket = path.partition("/")[0]
    return _set(place, bucket=bucket, region=environment_region(), virtual=wants_virtual())


def _in_host(place: Place, vendor: Vendor) -> Place:
    """BUCKET.ENDPOINT, the endpoint being one of the vendor's, or one of a private cloud."""
    bucket, _, endpoint = place.endpoint.partition(".")
    virtual = wants_virtual() if vendor.virtual is None else vendor.virtual
    found = re.fullmatch(vendor.endpoint, endpoint) if vendor.endpoint else None
    if found is None:
        return _set(place, endpoint=endpoint, bucket=bucket, region=environment_region(), virtual=virtual)
    groups = found.groupdict()
    region = groups["region"]
    if place.kind == "ks3":
        region = KS3_REGIONS.get(region, region)
    face = vendor.face.format(**groups) if vendor.face else endpoint
    return _set(place, endpoint=face, bucket=bucket, region=region, virtual=virtual)


def environment_region() -> str:
    """Where the URL does not tell."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or DEFAULT_REGION


def _s3(place: Place, path: str) -> Place:
    """Amazon's own, in all its spellings, and everybody else's."""
    host = place.endpoint
    if path:
        found = AWS.fullmatch(host)
        bucket = path.partition("/")[0]
        return _in_path(place, path) if found is None else _amazon(place, bucket, found)
    if "." not in host and ":" not in host:  # a bucket alone: its region has to be asked for
        return _set(place, endpoint="s3.amazonaws.com", bucket=host, virtual="." not in host)
    if VPC.fullmatch(host):
        bucket, _, endpoint = host.partition(".")
        region = VPC.fullmatch(host)["region"]  # type: ignore[index]
        return _set(place, endpoint=endpoint, bucket=bucket, region=region, virtual=wants_virtual())
    if "amazonaws.com" in host:
        bucket, _, rest = host.partition(".s3")
        found = AWS.fullmatch("s3" + rest)
        return place if found is None else _amazon(place, bucket, found)
    bucket, _, endpoint = host.partition(".")
    matches = (pattern.fullmatch(endpoint) for pattern in REGION_IN_HOST)
    region = next((found["region"] for found in matches if found), "") or environment_region()
    return _set(place, endpoint=endpoint, bucket=bucket, region=region, virtual=wants_virtual())


def _amazon(place: Place, bucket: str, found: re.Match[str]) -> Place:
    region = found["region"] or DEFAULT_REGION
    if region == "external-1":
        region = DEFAULT_REGION
    dual = ".dualstack" if found["dual"] else ""
    endpoint = f"s3{found['fips'] or ''}{dual}.{region}.amazonaws.com{found['china'] or ''}"
    return _set(place, endpoint=endpoint, bucket=bucket, region=region, virtual="." not in bucket)


def _with_options(place: Place, options: Mapping[str, str]) -> Place:
    """The URL's parameters.  `disable-100-continue` asks for what jfs does anyway."""
    known: dict[str, Callable[[str], Mapping[str, object]]] = {
        "tls-insecure-skip-verify": lambda value: {"skip_verify": _truth("tls-insecure-skip-verify", value)},
        "ca-certs": lambda value: {"ca_certs": value},
        "ssl-cert": lambda value: {"cert": value},
        "ssl-key": lambda value: {"key": value},
    }
    tls: dict[str, object] = {}
    for name, value in options.items():
        if name in known:
            tls.update(known[name](value))
        elif name == "region":
            place = _set(place, region=value)
        elif name == "disable-checksum":
            place = _set(place, checksum=not _truth(name, value))
        elif name == "disable-100-continue":
            _truth(name, value)
        else:
            raise UserError(
                f"unknown parameter {name!r} in the bucket URL: region, disable-checksum, disable-100-continue, "
                f"{', '.join(known)} are known"
            )
    if place.kind == "minio" and "region" not in options:
        place = _set(place, region=os.environ.get("MINIO_REGION") or DEFAULT_REGION)
    return _set(place, tls=msgspec.convert(tls, Tls))


def _truth(name: str, value: str) -> bool:
    if value.lower() in TRUE:
        return True
    if value.lower() in FALSE:
        return False
    raise UserError(f"parameter {name} of the bucket URL must be true or false, not {value!r}")
