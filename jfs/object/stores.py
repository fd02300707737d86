"""Which storage name is which store."""

from typing import Final

import msgspec

from jfs.errors import UserError
from jfs.object.encrypt import Encrypted
from jfs.object.file import FileStore
from jfs.object.limit import Limit, Limits
from jfs.object.memory import MemoryStore
from jfs.object.prefix import Prefix
from jfs.object.retry import Retry
from jfs.object.shard import Sharded, shard_buckets
from jfs.object.store import ObjectStore, RequestOptions

# The vendors' table has the same names; it is imported for its storages only.
SUPPORTED: Final = (
    "file, mem, s3, minio, oss, cos, obs, tos, ks3, wasabi, gs, b2, scw, space, eos, oos, bos, qiniu, qingstor"
)

# What the peer can store in and jfs cannot: a better answer than "unknown".
KNOWN_ELSEWHERE: Final = """
azure bunny ceph cifs dragonfly etcd gluster hdfs ibmcos jss mysql nfs nos postgres redis scs sftp smb speedy sqlite3 storj swift
tikv ufile upyun wasb webdav
"""


FEWEST_CONNECTIONS: Final = 8
"""Kept open to each shard."""


class StoreOptions(RequestOptions, frozen=True, kw_only=True):
    """What it takes to open a bucket beside its name."""

    access_key: str = ""
    secret_key: str = ""
    session_token: str = ""
    shards: int = 0

    def __repr__(self) -> str:
        return f"StoreOptions(access_key={self.access_key!r}, ...)"


def open_store(storage: str, bucket: str, options: StoreOptions | None = None) -> ObjectStore:
    """The bucket itself, bare, or the buckets if there are shards.  Raises UserError for a storage that is not there."""
    options = options or StoreOptions()
    if options.shards > 1:
        return Sharded([_open_one(storage, name, options) for name in shard_buckets(bucket, options.shards)])
    return _open_one(storage, bucket, options)


def _open_one(storage: str, bucket: str, options: StoreOptions) -> ObjectStore:
    storage = storage.lower()
    if storage == "file":
        return FileStore(bucket)
    if storage == "mem":
        return MemoryStore(bucket)
    if storage in SUPPORTED.split(", "):
        return _open_s3(storage, bucket, options)
    what = (
        f"storage {storage} is not supported" if storage in KNOWN_ELSEWHERE.split() else f"invalid storage {storage!r}"
    )
    raise UserError(f"{what}; supported: {SUPPORTED}")


def _open_s3(storage: str, bucket: str, options: StoreOptions) -> ObjectStore:
    from jfs.object.credentials import AwsChain, key_source
    from jfs.object.s3 import S3Store
    from jfs.object.vendors import parse_place

    place = parse_place(storage, bucket)
    keys = key_source(storage, options.access_key, options.secret_key, options.session_token)
    connections = max(options.connections // max(options.shards, 1), FEWEST_CONNECTIONS)
    at_hand = not isinstance(keys, AwsChain)
    return S3Store(place, keys, msgspec.structs.replace(options, connections=connections), keys_at_hand=at_hand)


def volume_part(bucket: ObjectStore, volume: str, io_retries: int = 10, limits: Limits | None = None) -> ObjectStore:
    """The part of the bucket that belongs to the volume, with patience, and at the pace of `limits`."""
    part: ObjectStore = Prefix(bucket, volume + "/")
    return Retry(part if limits is None else Limit(part, limits), io_retries)


def impatient(store: ObjectStore) -> ObjectStore:
    """A volume's store for who must not wait between tries, or has patience of his own: each call is one try."""
    if isinstance(store, Encrypted):  # the outermost
        return Encrypted(impatient(store.inner), store.sealer)
    return store.inner if isinstance(store, Retry) else store
