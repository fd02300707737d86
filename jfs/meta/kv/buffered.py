"""What a transaction is to write: kept in Python until commit, for every key-value engine."""


class BufferedWrites:
    """The writing half of `KeyValues`.  RuntimeError for a write in a transaction that only reads."""

    __slots__ = ("_guards", "_write", "_writes")

    def __init__(self, *, write: bool) -> None:
        self._write = write
        self._writes: dict[bytes, bytes | None] = {}
        """By key; None: it is to be deleted."""
        self._guards: set[bytes] = set()

    def set(self, key: bytes, value: bytes) -> None:
        self._require_write()
        self._writes[key] = value

    def delete(self, key: bytes) -> None:
        self._require_write()
        self._writes[key] = None

    def guard(self, key: bytes) -> None:
        self._require_write()
        self._guards.add(key)

    def _require_write(self) -> None:
        if not self._write:
            raise RuntimeError("write in a transaction that was opened for reading")
