"""Object stores: named, immutable byte strings kept outside."""
