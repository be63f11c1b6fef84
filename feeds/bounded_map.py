"""A map of limited size that evicts the least recently used key."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class BoundedMap(OrderedDict[Key, Value]):
    """Holds at most `size_max` keys. `store` and `move_to_end` count as use; `get` does not, which keeps it cheap."""

    def __init__(self, size_max: int) -> None:
        super().__init__()
        self.size_max = size_max

    def store(self, key: Key, value: Value) -> None:
        """Set a key's value and evict the least recently used key if there are too many."""
        self[key] = value
        self.move_to_end(key)
        if len(self) > self.size_max:
            self.popitem(last=False)
