"""A block's bytes as they are stored: plain, one raw LZ4 block, or one zstd frame.

Blocking and CPU-bound: called in threads.  Decoding gives exactly the promised number of bytes or raises BadObject; it never
allocates more than that on a corrupt header's word.
"""

import threading
from typing import TYPE_CHECKING, Final, Protocol

from jfs.errors import BadObject, UserError
from jfs.object.store import Buffer

if TYPE_CHECKING:
    import zstandard

ZSTD_LEVEL: Final = 1


class Codec(Protocol):
    """How a volume stores its blocks.  `plain` codecs store bytes as they are, so a part of an object can be read."""

    plain: bool

    def encode(self, data: Buffer) -> Buffer:
        """The bytes to store."""
        ...

    def decode(self, data: Buffer, size: int) -> Buffer:
        """The block's `size` plain bytes.  Raises BadObject."""
        ...


class PlainCodec:
    """No compression."""

    plain = True

    def encode(self, data: Buffer) -> Buffer:
        return data

    def decode(self, data: Buffer, size: int) -> Buffer:
        if len(data) != size:
            raise BadObject(f"{len(data)} bytes instead of {size}")
        return data


class Lz4Codec:
    """One raw LZ4 block: no frame, no length; the plain size comes from the block's name."""

    plain = False

    def __init__(self) -> None:
        import lz4.block

        self._lz4 = lz4.block

    def encode(self, data: Buffer) -> Buffer:
        encoded: bytes = self._lz4.compress(data, store_size=False)
        return encoded

    def decode(self, data: Buffer, size: int) -> Buffer:
        try:
            plain: bytes = self._lz4.decompress(data, uncompressed_size=size)
        except self._lz4.LZ4BlockError as error:
            raise BadObject(f"lz4: {error}") from error
        if len(plain) != size:
            raise BadObject(f"lz4: {len(plain)} bytes instead of {size}")
        return plain


class ZstdCodec:
    """One zstd frame, level 1, with its content size and without a checksum; frames lacking the size are read too."""

    plain = False

    def __init__(self) -> None:
        import zstandard

        self._zstd = zstandard
        self._contexts = threading.local()  # a context serves one thread at a time

    def encode(self, data: Buffer) -> Buffer:
        context: zstandard.ZstdCompressor | None = getattr(self._contexts, "compressor", None)
        if context is None:
            context = self._zstd.ZstdCompressor(level=ZSTD_LEVEL, write_content_size=True, write_checksum=False)
            self._contexts.compressor = context
        return context.compress(data)

    def decode(self, data: Buffer, size: int) -> Buffer:
        context: zstandard.ZstdDecompressor | None = getattr(self._contexts, "decompressor", None)
        if context is None:
            context = self._zstd.ZstdDecompressor()
            self._contexts.decompressor = context
        try:
            promised = self._zstd.frame_content_size(data)
            if promised not in (-1, size):
                raise BadObject(f"zstd: the frame says {promised} bytes instead of {size}")
            plain = context.decompress(data, max_output_size=size)
        except self._zstd.ZstdError as error:
            raise BadObject(f"zstd: {error}") from error
        if len(plain) != size:
            raise BadObject(f"zstd: {len(plain)} bytes instead of {size}")
        return plain


def open_codec(compression: str) -> Codec:
    """By the name in the volume's settings; "" is none."""
    if compression in ("", "none"):
        return PlainCodec()
    if compression == "lz4":
        return Lz4Codec()
    if compression == "zstd":
        return ZstdCodec()
    raise UserError(f"unsupported compress algorithm: {compression}")
