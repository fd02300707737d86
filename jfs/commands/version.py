"""`jfs version`."""

from jfs import CLIENT_VERSION
from jfs.commands import arguments


@arguments.command("version", "", (0, 0))
def command(arguments: tuple[str, ...]) -> None:
    """Show the version."""
    print(f"juicefs version {CLIENT_VERSION}")
