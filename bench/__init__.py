"""jfs and JuiceFS side by side on one machine: the same work, in turn, on fresh volumes with default options."""
