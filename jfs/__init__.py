"""jfs: a distributed POSIX file system client, sharing volumes with JuiceFS Community Edition."""

__version__ = "0.1.0"
