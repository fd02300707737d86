"""A store that can be exchanged while it is in use: keys are renewed and buckets move while a volume is mounted."""

from jfs.object.decorator import Decorator
from jfs.object.store import ObjectStore


class Current(Decorator):
    """`inner`, whichever it is now.  Calls under way end on the store that they began on."""

    def exchange(self, inner: ObjectStore) -> None:
        """Go on with another store."""
        old, self.inner = self.inner, inner
        old.close()
