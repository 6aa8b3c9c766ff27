"""The place of the lowest score, found by looking at few: buckets of places, in the order of what they cost at least.

Pure. What it finds is what scoring every place would find: the lowest score, then the lowest id. Where too many places
would have to be looked at, it says so, and arrays are the better way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from gpushare.core.placement.policy import INFINITE

MOST_LOOKS = 32

# So many bounds of one request are kept.
_MOST_BOUNDS = 4096


class Found(NamedTuple):
    """`place`: the best, or None where no place takes the task; not `is_sure`: nobody knows yet."""

    place: int | None
    is_sure: bool = True


NO_PLACE = Found(None)


class Bounds(dict[int, float]):
    """By key of a bucket, the least that a place in it costs: what `find` says, kept. Infinite where no place can."""

    def __init__(self, find: Callable[[int], float]) -> None:
        super().__init__()
        self._find = find

    def __missing__(self, key: int) -> float:
        if len(self) == _MOST_BOUNDS:
            self.clear()
        found = self[key] = self._find(key)
        return found


def lowest(buckets: Mapping[int, Sequence[int]], bounds: Bounds, score: Callable[[int], float]) -> Found:
    """The place with the least `score` (infinite: the task does not fit there). Ids ascend within a bucket, and none of
    its places scores below its bound."""
    if not buckets:
        return NO_PLACE
    best, place, looks = INFINITE, None, 0
    keys, left = list(buckets), list(map(bounds.__getitem__, buckets))
    while (bound := min(left)) <= best and bound < INFINITE:
        bucket = left.index(bound)
        left[bucket] = INFINITE
        for each in buckets[keys[bucket]]:
            if place is not None and bound == best and each > place:
                break
            if looks == MOST_LOOKS:
                return Found(None, is_sure=False)
            looks += 1
            found = score(each)
            if found < best or (place is not None and found == best and each < place):
                best, place = found, each
    return Found(place)
