"""`jfs version`."""

from jfs import __version__
from jfs.commands import arguments


@arguments.command("version", "", (0, 0))
def command(arguments: tuple[str, ...]) -> None:
    """Show the version."""
    print(f"juicefs version {__version__}")
