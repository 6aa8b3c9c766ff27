"""What a leader keeps between scheduling passes: the fleet's arrays, the policy with what it has learned, short cuts.

Pure and derived: a new Brain over the same state decides the same, but for the job mix that a learning policy has seen
and for when it looks or guesses again. One brain a state, since its fleet empties `touched` and `moved`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

from gpushare.core.capacity import matches_model, share_on
from gpushare.core.commands import CoreSettings
from gpushare.core.model import WHOLE_CARD_MILLI, TaskRequest
from gpushare.core.placement import make_policy
from gpushare.core.placement.endings import Endings
from gpushare.core.placement.fleet import Fleet
from gpushare.core.placement.guesses import GuessedEndings
from gpushare.core.placement.policy import Policy
from gpushare.core.state import ClusterState
from gpushare.core.waiting import LineKey

_SEARCHES_KEPT = 10_000


@dataclass
class ShortCuts:
    """What need not be looked for again so soon."""

    # Lines for which nobody could make way, and when it is worth to look again.
    search_again_ms: dict[LineKey, int] = field(default_factory=dict)
    # Starving jobs for which no place could be guessed, and when it is worth to look again.
    guess_again_ms: dict[str, int] = field(default_factory=dict)
    # After a place was guessed: when the next may be.
    next_guess_ms: int = 0

    def copy(self) -> ShortCuts:
        return ShortCuts(dict(self.search_again_ms), dict(self.guess_again_ms), self.next_guess_ms)


class Twin:
    """What another brain begins with that decides as `brain` does now, and learns apart from it. Cheap to make."""

    def __init__(self, brain: Brain) -> None:
        self._settings, self._order, self._loads = brain.settings, tuple(brain.fleet.names), brain.loads
        self._policy = deepcopy(brain.policy)
        self._short_cuts = brain.short_cuts.copy()

    def over(self, state: ClusterState) -> Brain:
        """The brain itself, once, over a fork of the state that `brain` was over."""
        made = Brain(state, self._settings, self._order, self._policy)
        made.short_cuts = self._short_cuts
        made.refresh(self._loads)
        return made


class Brain:
    """`order`: the nodes' order for ties; without one, by name. `loads`: measured SM use in percent by card UUID."""

    def __init__(
        self,
        state: ClusterState,
        settings: CoreSettings,
        order: Sequence[str] = (),
        policy: Policy | None = None,
    ) -> None:
        self.state = state
        self.settings = settings
        self.policy: Policy = make_policy(settings.policy, settings.weights) if policy is None else policy
        self.fleet = Fleet(state, self.policy, order, settings.load_weight)
        self.endings, self.guessed = Endings(self.fleet), GuessedEndings(self.fleet)
        self.short_cuts = ShortCuts()
        self.loads: Mapping[str, int] | None = None
        self._least: dict[TaskRequest, int | None] = {}
        self._least_layout = -1

    def refresh(self, loads: Mapping[str, int] | None = None) -> None:
        """Bring everything in step with the state; the start of a pass or of a what-if."""
        touched = tuple(self.state.touched)
        self.fleet.refresh()
        self.endings.refresh(touched)
        self.guessed.refresh(touched)
        for key in self.state.submitted:
            job = self.state.jobs.get(key)
            if job is not None:
                self.policy.learn(job.spec.resources, job.spec.tasks)
        self.state.submitted.clear()
        if len(self.short_cuts.search_again_ms) > _SEARCHES_KEPT:
            self.short_cuts.search_again_ms.clear()
        if loads is not None:
            self.loads = loads
            self.fleet.set_loads(loads)

    def least_charge(self, request: TaskRequest) -> int | None:
        """The smallest charge of one task over all registered cards; None when no card could ever hold it."""
        if self._least_layout != self.fleet.layout:
            self._least.clear()
            self._least_layout = self.fleet.layout
        if len(self._least) > _SEARCHES_KEPT:
            self._least.clear()
        if request not in self._least:
            self._least[request] = self._find_least(request)
        return self._least[request]

    def _find_least(self, request: TaskRequest) -> int | None:
        if request.is_cpu:
            return 0
        if not request.is_share:
            return WHOLE_CARD_MILLI * request.gpus
        kinds = (k for k in self.fleet.kinds if matches_model(request, k.model, k.usable_mib))
        charges = (share_on(request, k.usable_mib).charge_milli for k in kinds)
        return min((c for c in charges if c <= WHOLE_CARD_MILLI), default=None)
