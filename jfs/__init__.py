"""jfs: a distributed POSIX file system client, sharing volumes with JuiceFS Community Edition."""

__version__ = "0.1.0"

CLIENT_VERSION = f"1.4.2+jfs-{__version__}"
"""What jfs calls itself towards JuiceFS and its tools: the version whose volumes and commands it shares, then its own."""
