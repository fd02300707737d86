"""`jfs compact PATH...`: have a mount rewrite chunks of many slices as one slice, by its `.control` file.

The mount may be one of jfs or of the peer.
"""

import logging
import os
import time
from typing import Final

from jfs.commands import arguments
from jfs.commands.progress import Progress
from jfs.errors import UserError

log = logging.getLogger(__name__)

LOOK_S: Final = 0.05


@arguments.command("compact", "PATH...", (1, 1 << 16))
@arguments.value("--threads", "-p", kind=arguments.Whole(1, 0xFFFF), default=10, text="how many chunks at a time")
def command(arguments: tuple[str, ...], *, threads: int) -> int:
    """Compact the chunks of files, and of all files below directories."""
    failed = 0
    with Progress() as progress:
        for path in arguments:
            try:
                _compact(os.path.abspath(path), threads, progress)
            except UserError as error:
                log.error("%s", error)
                failed += 1
    return 1 if failed else 0


def _compact(path: str, threads: int, progress: Progress) -> None:
    try:
        info = os.stat(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    control = _open_control(path if os.path.isdir(path) else os.path.dirname(os.path.realpath(path)), path)
    try:
        code = _ask(control, info.st_ino, threads, progress, path)
    except OSError as error:
        raise UserError(f'compact [{info.st_ino}:"{path}"]: {error.strerror}') from error
    finally:
        os.close(control)
    if code:
        raise UserError(f'compact [{info.st_ino}:"{path}"]: {os.strerror(code)}; the log of the mount may tell more')
    log.info('compact [%d:"%s"] success.', info.st_ino, path)


def _open_control(folder: str, path: str) -> int:
    from jfs.commands.special import special_file

    file = special_file(folder, "control")
    if file is None:
        raise UserError(f"{path} is not in a mounted volume")
    try:
        return os.open(file, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from error


def _ask(control: int, ino: int, threads: int, progress: Progress, path: str) -> int:
    """The errno that the mount answers with, 0 once it is done."""
    from jfs.vfs.control import COMPACT, COMPACT_BODY, HEADER, PROGRESS, PROGRESS_MESSAGE

    body = COMPACT_BODY.pack(ino, threads)
    os.write(control, HEADER.pack(COMPACT, len(body)) + body)
    step = progress.count(f"Compacted chunks of {path}")
    answer, done = b"", 0
    while True:
        part = os.read(control, 1 << 17)
        answer += part
        while len(answer) >= PROGRESS_MESSAGE.size and answer[0] == PROGRESS:
            _, _, now = PROGRESS_MESSAGE.unpack_from(answer)
            step(now - done)
            answer, done = answer[PROGRESS_MESSAGE.size :], now
        if answer and answer[0] != PROGRESS:
            return answer[0]
        if not part:
            time.sleep(LOOK_S)
