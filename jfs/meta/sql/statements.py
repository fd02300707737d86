"""The SQL of a volume, made once for its table prefix.

Names of edges are blobs and names of extended attributes are text, or other programs do not find them: SQLite never
matches text with a blob.  Text is bound as bytes and cast, since it need not be UTF-8.  Slices stay blobs when appended to.
"""

from typing import Final

from jfs.meta.sql.rows import NODE_COLUMNS, NODE_SELECT

_NODE: Final = ",".join(NODE_SELECT)
_EDGE_NODE: Final = ",".join(
    f"n.{name}" if name in NODE_COLUMNS[:13] else f"ifnull(n.{name},0)" for name in NODE_COLUMNS
)


def _upsert(table: str, key: str, *columns: str) -> str:
    """Insert a row or replace the other columns of the one that has this key."""
    keys = key.split(",")
    names = ",".join((*keys, *columns))
    marks = ",".join("?" * (len(keys) + len(columns)))
    changes = ",".join(f"{name}=excluded.{name}" for name in columns)
    return f"INSERT INTO {table} ({names}) VALUES ({marks}) ON CONFLICT ({key}) DO UPDATE SET {changes}"


class Statements:
    """One attribute per statement; those of a verb share its name."""

    def __init__(self, prefix: str) -> None:
        self._inodes(prefix)
        self._names(prefix)
        self._xattrs(prefix)
        self._slices(prefix)
        self._fingerprints(prefix)
        self._books(prefix)
        self._sessions(prefix)
        self._pages(prefix)

    def _inodes(self, p: str) -> None:
        self.attr = f"SELECT {_NODE} FROM {p}node WHERE inode=?"
        self.attrs = f"SELECT inode,{_NODE} FROM {p}node WHERE inode IN (SELECT value FROM json_each(?))"
        self.put_attr = _upsert(f"{p}node", "inode", *NODE_COLUMNS)
        self.delete_attr = f"DELETE FROM {p}node WHERE inode=?"
        self.symlink = f"SELECT target FROM {p}symlink WHERE inode=?"
        self.put_symlink = _upsert(f"{p}symlink", "inode", "target")
        self.delete_symlink = f"DELETE FROM {p}symlink WHERE inode=?"

    def _names(self, p: str) -> None:
        self.lookup = (
            f"SELECT e.inode,{_EDGE_NODE} FROM {p}edge e INNER JOIN {p}node n ON n.inode=e.inode"
            " WHERE e.parent=? AND e.name=?"
        )
        self.dentry = f"SELECT type,inode FROM {p}edge WHERE parent=? AND name=?"
        self.entries = (
            f"SELECT e.name,e.type,e.inode,{_EDGE_NODE} FROM {p}edge e LEFT JOIN {p}node n ON n.inode=e.inode"
            " WHERE e.parent=? AND e.name>? ORDER BY e.name LIMIT ?"
        )
        self.dentries = f"SELECT name,type,inode FROM {p}edge WHERE parent=? AND name>? ORDER BY name LIMIT ?"
        self.put_dentry = _upsert(f"{p}edge", "parent,name", "inode", "type")
        self.delete_dentry = f"DELETE FROM {p}edge WHERE parent=? AND name=?"
        self.parents = f"SELECT parent,count(*) FROM {p}edge WHERE inode=? GROUP BY parent"

    def _xattrs(self, p: str) -> None:
        self.xattr = f"SELECT value FROM {p}xattr WHERE inode=? AND name=CAST(? AS TEXT)"
        self.xattr_names = f"SELECT name FROM {p}xattr WHERE inode=? ORDER BY name"
        self.put_xattr = (
            f"INSERT INTO {p}xattr (inode,name,value) VALUES (?,CAST(? AS TEXT),?)"
            " ON CONFLICT (inode,name) DO UPDATE SET value=excluded.value"
        )
        self.delete_xattr = f"DELETE FROM {p}xattr WHERE inode=? AND name=CAST(? AS TEXT)"
        self.delete_xattrs = f"DELETE FROM {p}xattr WHERE inode=?"

    def _slices(self, p: str) -> None:
        self.slices = f"SELECT slices FROM {p}chunk WHERE inode=? AND indx=?"
        self.chunks = f"SELECT indx,slices FROM {p}chunk WHERE inode=? ORDER BY indx"
        self.chunk_indexes = f"SELECT indx FROM {p}chunk WHERE inode=? AND indx>=? AND indx<? ORDER BY indx"
        self.append_slices = (
            f"INSERT INTO {p}chunk (inode,indx,slices) VALUES (?,?,?) ON CONFLICT (inode,indx)"
            " DO UPDATE SET slices=CAST(slices || excluded.slices AS BLOB) RETURNING length(slices)"
        )
        self.put_slices = _upsert(f"{p}chunk", "inode,indx", "slices")
        self.delete_chunk = f"DELETE FROM {p}chunk WHERE inode=? AND indx=?"
        self.new_slice = f"INSERT INTO {p}chunk_ref (chunkid,size,refs) VALUES (?,?,1)"
        self.slice_references = f"SELECT refs FROM {p}chunk_ref WHERE chunkid=? AND size=?"
        self.add_slice_references = f"UPDATE {p}chunk_ref SET refs=refs+? WHERE chunkid=? AND size=? RETURNING refs"
        self.restore_slice = f"INSERT INTO {p}chunk_ref (chunkid,size,refs) VALUES (?,?,?)"
        self.forget_slice = f"DELETE FROM {p}chunk_ref WHERE chunkid=? AND size=? AND refs<=0"
        self.dead_slices = f"SELECT chunkid,size FROM {p}chunk_ref WHERE refs<=0 LIMIT ?"
        self.slice_counts = f"SELECT chunkid,size,refs FROM {p}chunk_ref WHERE chunkid>? ORDER BY chunkid LIMIT ?"
        self.delayed_slices = (
            f"SELECT chunkid,deleted,slices FROM {p}delslices WHERE deleted<? ORDER BY deleted,chunkid LIMIT ?"
        )
        self.put_delayed_slices = _upsert(f"{p}delslices", "chunkid", "deleted", "slices")
        self.delete_delayed_slices = f"DELETE FROM {p}delslices WHERE chunkid=?"
        self.deleted_files = f"SELECT inode,length,expire FROM {p}delfile WHERE expire<? ORDER BY expire,inode LIMIT ?"
        self.put_deleted_file = _upsert(f"{p}delfile", "inode", "length", "expire")
        self.forget_deleted_file = f"DELETE FROM {p}delfile WHERE inode=?"

    def _fingerprints(self, p: str) -> None:
        # A row of the settings, which every volume's database has: whoever may not change anything can look there.
        self.fingerprinting = f"SELECT value FROM {p}setting WHERE name='fingerprint'"
        self.put_fingerprinting = (
            f"INSERT INTO {p}setting (name,value) VALUES ('fingerprint',CAST(? AS TEXT))"
            " ON CONFLICT (name) DO UPDATE SET value=excluded.value"
        )
        self.delete_fingerprinting = f"DELETE FROM {p}setting WHERE name='fingerprint'"
        self.fingerprints = (
            f"SELECT chunkid,size,value FROM {p}fingerprint WHERE chunkid IN (SELECT value FROM json_each(?))"
        )
        self.put_fingerprint = _upsert(f"{p}fingerprint", "chunkid", "size", "value")
        self.delete_fingerprint = f"DELETE FROM {p}fingerprint WHERE chunkid=? AND size=?"
        self.all_fingerprints = f"SELECT chunkid,size FROM {p}fingerprint WHERE chunkid>? ORDER BY chunkid LIMIT ?"

    def _books(self, p: str) -> None:
        self.counter = f"SELECT value FROM {p}counter WHERE name=?"
        self.put_counter = _upsert(f"{p}counter", "name", "value")
        self.settings = f"SELECT value FROM {p}setting WHERE name='format'"
        self.put_settings = (
            f"INSERT INTO {p}setting (name,value) VALUES ('format',CAST(? AS TEXT))"
            " ON CONFLICT (name) DO UPDATE SET value=excluded.value"
        )
        self.dir_stat = f"SELECT data_length,used_space,used_inodes FROM {p}dir_stats WHERE inode=?"
        self.put_dir_stat = _upsert(f"{p}dir_stats", "inode", "data_length", "used_space", "used_inodes")
        self.delete_dir_stat = f"DELETE FROM {p}dir_stats WHERE inode=?"
        self.dir_quotas = f"SELECT inode,max_space,max_inodes,used_space,used_inodes FROM {p}dir_quota"
        self.delete_dir_quota = f"DELETE FROM {p}dir_quota WHERE inode=?"
        self.detached = f"SELECT inode FROM {p}detached_node WHERE added<?"
        self.delete_detached = f"DELETE FROM {p}detached_node WHERE inode=?"

    def _sessions(self, p: str) -> None:
        self.session = f"SELECT sid,expire,info FROM {p}session2 WHERE sid=?"
        self.sessions = f"SELECT sid,expire,info FROM {p}session2 ORDER BY sid"
        self.put_session = _upsert(f"{p}session2", "sid", "expire", "info")
        self.delete_session = f"DELETE FROM {p}session2 WHERE sid=?"
        self.sustained = f"SELECT inode FROM {p}sustained WHERE sid=? ORDER BY inode"
        self.put_sustained = f"INSERT INTO {p}sustained (sid,inode) VALUES (?,?) ON CONFLICT (sid,inode) DO NOTHING"
        self.delete_sustained = f"DELETE FROM {p}sustained WHERE sid=? AND inode=?"
        self.flocks = f"SELECT inode,sid,owner,ltype FROM {p}flock WHERE sid=? ORDER BY inode,owner"
        self.plocks = f"SELECT inode,sid,owner,records FROM {p}plock WHERE sid=? ORDER BY inode,owner"
        self.release_flocks = f"DELETE FROM {p}flock WHERE sid=?"
        self.release_plocks = f"DELETE FROM {p}plock WHERE sid=?"

    def _pages(self, p: str) -> None:
        self.all_attrs = f"SELECT inode,{_NODE} FROM {p}node WHERE inode>? ORDER BY inode LIMIT ?"
        self.all_dentries = f"SELECT id,parent,name,type,inode FROM {p}edge WHERE id>? ORDER BY id LIMIT ?"
        self.all_chunks = f"SELECT id,inode,indx,slices FROM {p}chunk WHERE id>? ORDER BY id LIMIT ?"
        self.all_dir_stats = (
            f"SELECT inode,data_length,used_space,used_inodes FROM {p}dir_stats WHERE inode>? ORDER BY inode LIMIT ?"
        )
