"""`python -m jfs` is `jfs`."""

from jfs.cli import main

if __name__ == "__main__":
    main()
