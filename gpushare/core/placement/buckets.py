"""Places that a policy can hardly tell apart, by key: the index that it is searched by.

May import numpy. A place is in at most one bucket; ids ascend within each, and no bucket is empty. Buckets are made
when they are first asked for, and again after so many places have moved at once that sorting all costs less.
"""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np

from gpushare.core.placement.policy import IntArray

# The key of what is in no bucket; all others are larger.
NOWHERE = -1

# Beyond one in so many places, sorting all costs less than moving them one by one.
_MANY = 16


class Buckets:
    """`keys`: the key of each place."""

    def __init__(self, places: int) -> None:
        self.keys: IntArray = np.full(places, NOWHERE, np.int64)
        self._by_key: dict[int, list[int]] | None = None

    def by_key(self) -> dict[int, list[int]]:
        """Do not write to it."""
        if self._by_key is None:
            order = self.keys.argsort(kind="stable")
            keys = self.keys[order]
            starts = np.flatnonzero(np.diff(keys, prepend=NOWHERE))
            found = np.split(order, starts)[1:]
            self._by_key = {key: ids.tolist() for key, ids in zip(keys[starts].tolist(), found, strict=True)}
        return self._by_key

    def move_all(self, places: IntArray, keys: IntArray) -> None:
        """`keys` are in step with `places`."""
        moved = (self.keys[places] != keys).nonzero()[0]
        if len(moved) * _MANY > len(self.keys):
            self._by_key = None
        if self._by_key is None:
            self.keys[places] = keys
            return
        for place, key in zip(places[moved].tolist(), keys[moved].tolist(), strict=True):
            self.move(place, key)

    def move(self, place: int, key: int) -> None:
        was = self.keys.item(place)
        if was == key:
            return
        self.keys[place] = key
        if self._by_key is None:
            return
        if was != NOWHERE:
            bucket = self._by_key[was]
            del bucket[bisect_left(bucket, place)]
            if not bucket:
                del self._by_key[was]
        if key != NOWHERE:
            insort(self._by_key.setdefault(key, []), place)
