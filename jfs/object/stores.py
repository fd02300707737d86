"""Which storage name is which store."""

from typing import Final

from jfs.errors import UserError
from jfs.object.file import FileStore
from jfs.object.limit import Limit, Limits
from jfs.object.memory import MemoryStore
from jfs.object.prefix import Prefix
from jfs.object.retry import Retry
from jfs.object.store import ObjectStore

SUPPORTED: Final = ("file", "mem")

# What the peer can store in and jfs cannot yet: a better answer than "unknown".
KNOWN_ELSEWHERE: Final = """
azure b2 bos bunny ceph cifs cos dragonfly eos etcd gluster gs hdfs ibmcos jss ks3 minio mysql nfs nos obs oos oss postgres
qingstor qiniu redis s3 scs scw sftp space speedy sqlite3 swift tikv tos ufile upyun wasabi webdav
"""


def open_store(storage: str, bucket: str) -> ObjectStore:
    """The bucket itself, bare.  Raises UserError for a storage that is not there."""
    if storage == "file":
        return FileStore(bucket)
    if storage == "mem":
        return MemoryStore(bucket)
    if storage in KNOWN_ELSEWHERE.split():
        raise UserError(f"storage {storage} is not supported yet; supported: {', '.join(SUPPORTED)}")
    raise UserError(f"invalid storage {storage!r}; supported: {', '.join(SUPPORTED)}")


def open_volume_store(
    storage: str, bucket: str, volume: str, io_retries: int = 10, limits: Limits | None = None
) -> ObjectStore:
    """The part of the bucket that belongs to the volume, with patience, and at the pace of `limits`."""
    part: ObjectStore = Prefix(open_store(storage, bucket), volume + "/")
    return Retry(part if limits is None else Limit(part, limits), io_retries)
