"""How calls and transactions fail, beside `Conflict` and `Unavailable` of `jfs.errors`."""

from typing import Final

UNAVAILABLE: Final = 14
DEADLINE_EXCEEDED: Final = 4


class RpcError(Exception):
    """A call that has no answer.  `sent`: the server may have executed it all the same, or may still do so."""

    def __init__(self, message: str, *, code: int = UNAVAILABLE, sent: bool = True) -> None:
        super().__init__(message)
        self.code = code
        self.sent = sent


class ProtocolError(Exception):
    """The server does not speak HTTP/2 as it should: the connection is of no use any more."""


class Refused(Exception):
    """The store refuses the request for what is in it (a key or a transaction that is too large): no use to try again."""


class Undetermined(Exception):
    """Whether a transaction was committed could not be found out."""
