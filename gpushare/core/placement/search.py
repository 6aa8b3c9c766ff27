"""The place of the lowest score, found by looking at few: buckets of places, in the order of what they cost at least.

Pure. What it finds is what scoring every place would find: the lowest score, then the lowest id. Where there are too
many buckets, or too many places would have to be looked at, it says so, and arrays are the better way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from typing import NamedTuple

from gpushare.core.placement.policy import INFINITE

MOST_BUCKETS = 256
MOST_LOOKS = 32

# So many bounds of one request are kept.
_MOST_BOUNDS = 2 * MOST_BUCKETS

# In place of a bound; below them all.
_UNKNOWN = -INFINITE


class Found(NamedTuple):
    """`place`: the best, or None where no place takes the task; not `is_sure`: nobody knows yet."""

    place: int | None
    is_sure: bool = True


NO_PLACE = Found(None)
UNSURE = Found(None, is_sure=False)


class _Best(NamedTuple):
    """Of the places looked at; more looks than `MOST_LOOKS` say that there were too many."""

    score: float = INFINITE
    place: int = -1
    looks: int = 0


def lowest(
    buckets: Mapping[int, Sequence[int]],
    bounds: dict[int, float],
    find_bound: Callable[[int], float],
    score: Callable[[int], float],
) -> Found:
    """The place with the least `score` (infinite: the task does not fit there). Ids ascend within a bucket. None of a
    bucket's places scores below what `find_bound` says of its key (infinite: it fits in none), which `bounds` keeps."""
    if not buckets:
        return NO_PLACE
    if len(buckets) > MOST_BUCKETS:
        return UNSURE
    keys, least = list(buckets), list(map(bounds.get, buckets, repeat(_UNKNOWN)))
    if min(least) == _UNKNOWN:
        least = _bounds_of(keys, bounds, find_bound)
    # Mostly the place is in the first bucket, and few others could have a better one.
    first = least.index(min(least))
    best = _look(buckets[keys[first]], least[first], score, _Best())
    if best.looks > MOST_LOOKS:
        return UNSURE
    least[first] = INFINITE
    others = [(bound, key) for bound, key in zip(least, keys, strict=True) if bound <= best.score]
    others.sort()
    for bound, key in others:
        if bound > best.score or bound == INFINITE:
            break
        if bound < best.score or buckets[key][0] < best.place:
            best = _look(buckets[key], bound, score, best)
            if best.looks > MOST_LOOKS:
                return UNSURE
    return NO_PLACE if best.score == INFINITE else Found(best.place)


def _bounds_of(keys: Sequence[int], bounds: dict[int, float], find_bound: Callable[[int], float]) -> list[float]:
    if len(bounds) > _MOST_BOUNDS:
        bounds.clear()
    for key in keys:
        if key not in bounds:
            bounds[key] = find_bound(key)
    return [bounds[key] for key in keys]


def _look(bucket: Sequence[int], bound: float, score: Callable[[int], float], best: _Best) -> _Best:
    """The best of that and of a bucket, as far as looks go."""
    least, place, looks = best
    for each in bucket:
        if bound > least or (bound == least and each > place):
            break
        looks += 1
        if looks > MOST_LOOKS:
            break
        found = score(each)
        if found < least or (found == least and each < place):
            least, place = found, each
    return _Best(least, place, looks)
