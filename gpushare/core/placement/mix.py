"""What tenants have been asking for lately, learned from submissions: the job mix that learning policies place for.

Pure; imports the core's nouns only. It begins empty, forgets what is old, and is bounded: at most `MOST_CLASSES`
different requests are kept, the rarest go first. The same submissions in the same order give the same mix.
"""

from __future__ import annotations

from typing import NamedTuple

from gpushare.core.model import WHOLE_CARD_MILLI, TaskRequest

MOST_CLASSES = 2048

# The mix is read first after so many tasks, then each time that so many have come again as before, up to half a window.
FIRST_READING_TASKS = 32

# One job of many tasks counts for at most this part of the window, so that it does not hide everybody else.
_LARGEST_PART = 16

# What counts for less than this after forgetting is dropped.
_LEAST_WEIGHT = 0.05


class JobClass(NamedTuple):
    """Tasks that ask for the same: `gpus` whole cards or (1) a share of `milli` of one, 0 for a CPU task. What was not
    asked for is 0: it follows the card, so it never runs short before the card does. `models`: empty = any."""

    gpus: int
    milli: int
    cpu_milli: int
    memory_mib: int
    models: tuple[str, ...]
    weight: float

    @property
    def gpu_milli(self) -> int:
        """Thousandths of cards in all."""
        return self.gpus * self.milli


_Key = tuple[int, int | None, int | None, int, int, tuple[str, ...]]


class JobMix:
    """Tasks by what they ask for, those of the last `window_tasks` submissions or so. `is_due`: enough has come since
    the last reading that prices from it are worth making anew."""

    def __init__(self, window_tasks: int) -> None:
        self.window_tasks = max(2 * FIRST_READING_TASKS, window_tasks)
        self._weights: dict[_Key, float] = {}
        self._total = 0.0
        self._seen = 0
        self._next_reading = FIRST_READING_TASKS

    @property
    def is_due(self) -> bool:
        return self._seen >= self._next_reading

    def learn(self, request: TaskRequest, tasks: int) -> None:
        weight = min(tasks, self.window_tasks // _LARGEST_PART)
        key = (
            request.gpus,
            request.gpu_milli,
            request.gpu_memory_mib,
            request.cpu_milli or 0,
            request.memory_mib or 0,
            request.gpu_models,
        )
        self._weights[key] = self._weights.get(key, 0.0) + weight
        self._total += weight
        self._seen += weight
        if len(self._weights) > MOST_CLASSES:
            self._keep(sorted(self._weights, key=lambda k: -self._weights[k])[: MOST_CLASSES // 2], 1.0)

    def read(self, usable_mib: int) -> list[JobClass]:
        """The mix now, in the order in which its classes were first seen; a share that names only memory is counted as
        on a card with `usable_mib`. Sets the next reading and forgets."""
        self._next_reading = self._seen + min(self._seen, self.window_tasks // 2)
        classes = [_class_of(key, weight, usable_mib) for key, weight in self._weights.items()]
        if self._total > self.window_tasks:
            self._keep(list(self._weights), self.window_tasks / 2 / self._total)
        return classes

    def _keep(self, keys: list[_Key], part: float) -> None:
        """Only these classes, with this part of their weight."""
        kept = {k: self._weights[k] * part for k in keys}
        self._weights = {k: w for k, w in kept.items() if w > _LEAST_WEIGHT}
        self._total = sum(self._weights.values())


def _class_of(key: _Key, weight: float, usable_mib: int) -> JobClass:
    gpus, gpu_milli, gpu_memory_mib, cpu_milli, memory_mib, models = key
    if gpu_milli is None and gpu_memory_mib is None:
        return JobClass(gpus, WHOLE_CARD_MILLI if gpus else 0, cpu_milli, memory_mib, models, weight)
    by_memory = -(-WHOLE_CARD_MILLI * (gpu_memory_mib or 0) // max(1, usable_mib))
    milli = min(WHOLE_CARD_MILLI, max(gpu_milli or 0, by_memory, 1))
    return JobClass(1, milli, cpu_milli, memory_mib, models, weight)
