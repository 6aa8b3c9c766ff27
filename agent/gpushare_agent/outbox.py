"""What the scheduler has not been told yet.

Imports asyncio and the nouns. Bounded by its shape: of each attempt and of each card only the newest word is kept,
since every report is a whole truth and not a step. Nothing is lost with a broken session, because the Sync of the next
one carries everything; `clear` is called when that is built.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import msgspec

from gpushare.core.model import GpuCondition
from gpushare_agent.core import Report
from gpushare_agent.gpus.port import GpuSample
from gpushare_agent.sharing.watchdog import JobUse


class Batch(msgspec.Struct, frozen=True):
    """What there was to say at one moment. `samples` None: none are due."""

    reports: tuple[Report, ...]
    conditions: tuple[GpuCondition, ...]
    samples: tuple[GpuSample, ...] | None
    uses: tuple[JobUse, ...]


class Outbox:
    """Filled by the agent, emptied by its session."""

    def __init__(self) -> None:
        self._reports: dict[str, Report] = {}
        self._conditions: dict[str, GpuCondition] = {}
        self._samples: tuple[GpuSample, ...] | None = None
        self._uses: tuple[JobUse, ...] = ()
        self._filled = asyncio.Event()

    def tell(self, report: Report) -> None:
        """An attempt's newest state."""
        self._reports[report.attempt_id] = report
        self._filled.set()

    def tell_conditions(self, conditions: Iterable[GpuCondition]) -> None:
        """Cards whose condition has changed."""
        for condition in conditions:
            self._conditions[condition.uuid] = condition
            self._filled.set()

    def tell_samples(self, samples: Iterable[GpuSample], uses: Iterable[JobUse]) -> None:
        """What the cards do now and what attempts take of them; the last look alone is kept."""
        self._samples, self._uses = tuple(samples), tuple(uses)
        self._filled.set()

    def clear(self) -> None:
        """A Sync says all of it."""
        self._reports.clear()
        self._conditions.clear()
        self._samples, self._uses = None, ()
        self._filled.clear()

    def take(self) -> Batch:
        """Everything, which is then no longer here."""
        batch = Batch(tuple(self._reports.values()), tuple(self._conditions.values()), self._samples, self._uses)
        self.clear()
        return batch

    def wake(self) -> None:
        """Let the session look again at when it is due."""
        self._filled.set()

    async def wait(self, timeout_s: float) -> None:
        """Until there is something to say, or that long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._filled.wait()
        except TimeoutError:
            return
