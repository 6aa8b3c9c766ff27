"""How often somebody may ask, one token bucket a key, and when those are answered who asked too often.

Imports the standard library's data modules alone; the caller brings the time. Invariant: no more than `keys_max` keys
are remembered, and forgetting one never gives it less than it had.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple


class _Bucket(NamedTuple):
    left: float
    at_s: float


class RateLimit:
    """Each key may ask `burst` times at once and `per_s` times a second in the long run."""

    def __init__(self, burst: int, per_s: float, keys_max: int = 4096) -> None:
        self._burst = burst
        self._per_s = per_s
        self._keys_max = keys_max
        self._buckets: dict[Hashable, _Bucket] = {}

    def allows(self, key: Hashable, now_s: float) -> bool:
        """Whether `key` may ask now; if so, that is counted. `now_s` never runs backwards."""
        left, at_s = self._buckets.pop(key, _Bucket(self._burst, now_s))
        left = min(self._burst, left + (now_s - at_s) * self._per_s)
        allowed = left >= 1
        # The one that asked last stands last, so that the one that is forgotten has been quiet for longest.
        self._buckets[key] = _Bucket(left - 1 if allowed else left, now_s)
        if len(self._buckets) > self._keys_max:
            del self._buckets[next(iter(self._buckets))]
        return allowed


class Turns:
    """Answers to one key leave one by one: each after `least_s` or more, `apart_s` after the one before it, and after
    `most_s` at the latest."""

    def __init__(self, least_s: float, apart_s: float, most_s: float, keys_max: int = 4096) -> None:
        self._least_s, self._apart_s, self._most_s = least_s, apart_s, most_s
        self._keys_max = keys_max
        self._last_s: dict[Hashable, float] = {}

    def wait_s(self, key: Hashable, now_s: float) -> float:
        """How long the answer that is ready now has to wait; counts it as given then."""
        last_s = self._last_s.pop(key, now_s - self._apart_s)
        at_s = min(max(now_s + self._least_s, last_s + self._apart_s), now_s + self._most_s)
        self._last_s[key] = at_s
        if len(self._last_s) > self._keys_max:
            del self._last_s[next(iter(self._last_s))]
        return at_s - now_s
