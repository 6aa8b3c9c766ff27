"""Who has to make way so that a job can start: the smallest and youngest sufficient set of jobs, whole gangs only.

Pure, without arrays itself. Never for nothing: a set counts only once the claimant was placed on the scratch plan with
its victims gone, and then loses every victim without whom the claimant still starts. What makes way already counts as
gone. The work is bounded: few nodes are looked at, those with the most room first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from gpushare.core.kinds import AttemptState, Qos, Topology
from gpushare.core.model import WHOLE_CARD_MILLI, Attempt, Job, Slice
from gpushare.core.placement.ask import NO_LIMIT, Ask, Room
from gpushare.core.placement.endings import freed_by, give_own_host
from gpushare.core.placement.place import place_gang
from gpushare.core.plan import Plan
from gpushare.core.victims import Cost, Part, Victim, Victims, cost_of, cover

# Nodes with possible victims that are looked at for a job of one task; a gang adds its number of tasks.
NODES_MAX = 64
# Sets that are tried out on the plan.
_TRIALS_MAX = 16


class Way(NamedTuple):
    """The claimant's places once the victims (keys of jobs) have gone. `suspend`: those of them that only give up their
    cards. No victims: what makes way already is enough."""

    slices: tuple[Slice, ...]
    victims: tuple[str, ...] = ()
    suspend: frozenset[str] = frozenset()


# A card (or the node) by id, how many tasks more fit there, and without whom.
_Option = tuple[int, int, frozenset[str]]


class _Target(NamedTuple):
    """`tasks` more tasks fit at `spot` of a node when these victims have gone."""

    cost: Cost
    node: int
    spot: int
    tasks: int
    victims: frozenset[str]


def find_victims(
    plan: Plan,
    ask: Ask,
    job: Job,
    now_ms: int,
    allowed: Callable[[Job], bool],
    *,
    tasks: int | None = None,
    least: int | None = None,
) -> Way | None:
    """The way for `job` (of it `tasks`, `least` at once; the whole job unless given) to start; None: there is none.
    `plan` is left as it was."""
    tasks = job.spec.tasks if tasks is None else tasks
    least = job.spec.least_tasks if least is None else least
    for with_suspend in (True, False):
        victims = Victims(plan.state, job, allowed, with_suspend=with_suspend)
        checkpoint = plan.checkpoint()
        try:
            way = _Hunt(plan, ask, job, tasks, least, victims).find()
        finally:
            plan.rollback(checkpoint)
        # Suspended jobs keep CPU and host memory: where these are short, the same jobs are stopped instead.
        if way is not None or not victims.has_suspended:
            return way
    return None


class _Hunt:
    """One search. What makes way already is given back on the plan from the start."""

    def __init__(self, plan: Plan, ask: Ask, job: Job, tasks: int, least: int, victims: Victims) -> None:
        self.plan, self.fleet, self.ask, self.job = plan, plan.fleet, ask, job
        self.tasks, self.least, self.victims = tasks, least, victims
        self.needs = self.fleet.scores.of(ask.request).needs
        self.owed_cards: dict[int, tuple[int, int]] = {}
        self.owed_hosts: dict[int, tuple[int, int]] = {}
        self.nodes = self._possible_nodes()

    def find(self) -> Way | None:
        give_own_host(self.plan, self.job.key)
        for attempt in self._making_way():
            self.plan.give(attempt.tenant, freed_by(attempt), job=attempt.job_key)
        slices = self._place({})
        if slices is not None:
            return Way(tuple(slices))
        targets = self._targets()
        if self.ask.topology is not Topology.ANY:
            sets = self._sets_of_one_node(targets)
        elif self.least > 1:
            sets = self._growing_sets(targets)
        else:
            sets = [t.victims for t in sorted(targets, key=lambda t: (t.cost, t.node, t.spot))[:_TRIALS_MAX]]
        for keys in sets:
            way = self._try(keys)
            if way is not None:
                return way
        return None

    # -- where

    def _possible_nodes(self) -> list[int]:
        """Ids of the nodes where waiting can help, those with the most free first; notes what is promised there."""
        fleet, needs = self.fleet, self.needs
        shut: set[int] = set()
        promised = fleet.promised(self.ask.end_ms, self.ask.owner)
        if promised is not None:
            shut = set(promised.shut.tolist())
            amounts = zip(promised.by_card.milli.tolist(), promised.by_card.mib.tolist(), strict=True)
            self.owed_cards = dict(zip(promised.cards.tolist(), amounts, strict=True))
            hosts = zip(promised.by_node.cpu_milli.tolist(), promised.by_node.memory_mib.tolist(), strict=True)
            self.owed_hosts = dict(zip(promised.nodes.tolist(), hosts, strict=True))
        fits = (fleet.node_open & needs.node_fits).nonzero()[0].tolist()
        if not self.ask.request.is_cpu:
            has_cards = set(fleet.node_of[fleet.open & needs.card_fits].tolist())
            fits = [i for i in fits if i in has_cards]
        only = self.ask.only
        fits = [i for i in fits if i not in shut and (only is None or fleet.names[i] in only)]
        free = (fleet.free_cpu_milli if self.ask.request.is_cpu else fleet.free_share).tolist()
        return sorted(fits, key=lambda i: (-free[i], i))

    def _making_way(self) -> list[Attempt]:
        """What is on its way out there and not promised to another."""
        state, found = self.plan.state, []
        for i in self.nodes:
            for attempt_id in state.nodes[self.fleet.names[i]].attempts:
                attempt = state.attempts[attempt_id]
                if not (attempt.desired_stop or attempt.desired_suspend) or attempt.suspended_ms is not None:
                    continue
                is_taken = attempt.claimant != self.job.key and attempt.claimant in state.holds
                if not is_taken and attempt.state is not AttemptState.UNKNOWN:
                    found.append(attempt)
        return sorted(found, key=lambda a: a.id)

    # -- what it would cost, node by node

    def _targets(self) -> list[_Target]:
        found: list[_Target] = []
        seen = 0
        most = NODES_MAX + (self.least if self.least > 1 else 0)
        for i in self.nodes:
            here = self.victims.on(self.fleet.names[i])
            if not here:
                continue
            targets = self._targets_on(i, here)
            found += targets
            seen += bool(targets)
            if seen == most:
                break
        return found

    def _targets_on(self, i: int, here: list[Victim]) -> list[_Target]:
        if self.ask.request.is_cpu:
            options = self._cpu_options(i, here)
        elif self.ask.request.is_share:
            options = self._share_options(i, here)
        else:
            options = self._whole_options(i, here)
        by_key = {v.key: v for v in here}
        return [
            _Target(cost_of(by_key[k] for k in keys), i, spot, tasks, keys) for spot, tasks, keys in options if keys
        ]

    def _cpu_options(self, i: int, here: list[Victim]) -> Iterator[_Option]:
        """For more and more CPU tasks beside those that the node holds as it is."""
        held, parts = self._held(i), self._hosts_of(i, here)
        for tasks in range(1, self.least + 1):
            keys = cover(parts, self._host_lack(i, held + tasks, 0))
            if keys is None:
                return
            yield i, tasks, keys

    def _share_options(self, i: int, here: list[Victim]) -> Iterator[_Option]:
        """For each card, the victims that let more tasks onto it than fit the node now."""
        fleet, needs, held = self.fleet, self.needs, self._held(i)
        hosts = {part.victim.key: part.amounts for part in self._hosts_of(i, here)}
        for card in self._cards_of(i):
            grant = needs.grants[int(fleet.kind_of[card])]
            if grant is None:
                continue
            milli, mib = grant.share.milli, grant.share.mib
            free = (int(fleet.free_milli[card]), int(fleet.free_mib[card]))
            owed = self.owed_cards.get(card, (0, 0))
            uuid = fleet.uuids[card]
            parts = [Part(v, (*_card_amounts(v, uuid), *hosts[v.key])) for v in here]
            fits = min((free[0] - owed[0]) // milli, (free[1] - owed[1]) // mib)
            before = max(0, min(fits, held))
            for tasks in range(before + 1, before + self.least + 1):
                lack = (tasks * milli + owed[0] - free[0], tasks * mib + owed[1] - free[1])
                keys = cover(parts, (*lack, *self._host_lack(i, tasks, milli)))
                if keys is None:
                    break
                yield card, tasks - before, keys

    def _whole_options(self, i: int, here: list[Victim]) -> Iterator[_Option]:
        """The same for whole cards: the cheapest cards of the node emptied for one task after the other. A single task
        tries every card as the first."""
        fleet, gpus = self.fleet, self.ask.request.gpus
        by_key = {v.key: v for v in here}
        emptied: dict[int, frozenset[str]] = {}
        for card in self._cards_of(i):
            uuid = fleet.uuids[card]
            held = sum(uuid in p.gpu_uuids for v in here for p in v.pieces)
            if held == int(fleet.holders[card]) and self.owed_cards.get(card, (0, 0)) == (0, 0):
                emptied[card] = frozenset(v.key for v in here if any(uuid in p.gpu_uuids for p in v.pieces))
        before = min(self._held(i), sum(not keys for keys in emptied.values()) // gpus)
        parts = self._hosts_of(i, here)
        for first in [None] if self.least > 1 or gpus >= len(emptied) else list(emptied):
            left, gone, taken = dict(emptied), frozenset[str](), 0
            while left and taken < (before + self.least) * gpus:
                card = min(left, key=lambda c: (c != first, cost_of(by_key[k] for k in left[c] - gone), c))
                gone |= left.pop(card)
                taken += 1
                tasks = taken // gpus
                if taken % gpus == 0 and tasks > before:
                    more = cover(parts, self._host_lack(i, tasks, WHOLE_CARD_MILLI * gpus), gone)
                    if more is not None:
                        yield i, tasks - before, gone | more

    def _held(self, i: int) -> int:
        """How many tasks the node holds as it is, claims aside."""
        return int(self.fleet.scores.of(self.ask.request).counts()[i])

    def _cards_of(self, i: int) -> list[int]:
        """Ids of the node's cards that the request could be on."""
        fleet = self.fleet
        first = int(fleet.first_card[i])
        cards = range(first, first + int(fleet.card_count[i]))
        strict = self.ask.request.gpus > 0
        return [c for c in cards if fleet.open[c] and self.needs.card_fits[c] and not (strict and fleet.strangers[c])]

    def _host_lack(self, i: int, tasks: int, milli: int) -> tuple[int, int]:
        """What the node lacks of CPU and memory for so many tasks."""
        fleet = self.fleet
        cpu, memory = self.needs.host_of(fleet, i, milli)
        owed = self.owed_hosts.get(i, (0, 0))
        return (
            tasks * cpu + owed[0] - int(fleet.free_cpu_milli[i]),
            tasks * memory + owed[1] - int(fleet.free_memory_mib[i]),
        )

    def _hosts_of(self, i: int, here: list[Victim]) -> list[Part]:
        """What each victim frees of the node's CPU and memory."""
        name = self.fleet.names[i]
        return [
            Part(
                v,
                (
                    sum(p.cpu_milli for p in v.pieces if p.node == name),
                    sum(p.memory_mib for p in v.pieces if p.node == name),
                ),
            )
            for v in here
        ]

    # -- gangs

    def _growing_sets(self, targets: list[_Target]) -> list[frozenset[str]]:
        """The cheapest targets per task together, from where they should be enough on."""
        held = _tasks_now(self.plan, self.ask)
        gained: dict[tuple[int, int], int] = {}
        keys: frozenset[str] = frozenset()
        sets: list[frozenset[str]] = []
        for target in sorted(targets, key=_cost_per_task):
            spot = (target.node, target.spot)
            if gained.get(spot, 0) >= target.tasks:
                continue
            gained[spot] = target.tasks
            keys |= target.victims
            if held + sum(gained.values()) >= self.least and len(sets) < _TRIALS_MAX - 1:
                sets.append(keys)
        return sets if not sets or sets[-1] == keys else [*sets, keys]

    def _sets_of_one_node(self, targets: list[_Target]) -> list[frozenset[str]]:
        """For each node, the cheapest targets there that should be enough; the cheapest nodes first."""
        counts = self.fleet.scores.of(self.ask.request).counts()
        by_node: dict[int, list[_Target]] = {}
        for target in targets:
            by_node.setdefault(target.node, []).append(target)
        priced: list[tuple[Cost, int, frozenset[str]]] = []
        for i, here in by_node.items():
            gained: dict[int, int] = {}
            keys: frozenset[str] = frozenset()
            for target in sorted(here, key=_cost_per_task):
                if gained.get(target.spot, 0) < target.tasks:
                    gained[target.spot] = target.tasks
                    keys |= target.victims
                if int(counts[i]) + sum(gained.values()) >= self.least:
                    priced.append((cost_of(self._chosen(keys).values()), i, keys))
                    break
        return [keys for _, _, keys in sorted(priced, key=lambda p: p[:2])[:_TRIALS_MAX]]

    # -- the proof

    def _try(self, keys: frozenset[str]) -> Way | None:
        """The way with these victims, or with fewer of them; None when the claimant does not start even so."""
        chosen = self._chosen(keys)
        checkpoint = self.plan.checkpoint()
        for victim in chosen.values():
            self._move(victim, is_gone=True)
        slices = self._place(chosen)
        if slices is not None:
            slices = self._prune(chosen, slices)
        self.plan.rollback(checkpoint)
        if slices is None:
            return None
        return Way(tuple(slices), tuple(sorted(chosen)), frozenset(k for k, v in chosen.items() if v.is_suspended))

    def _prune(self, chosen: dict[str, Victim], slices: list[Slice]) -> list[Slice]:
        """Let everybody stay without whom the claimant still starts, the dearest first. Changes `chosen`."""
        for key in sorted(chosen, key=lambda k: cost_of([chosen[k]]), reverse=True):
            victim = chosen.pop(key)
            checkpoint = self.plan.checkpoint()
            self._move(victim, is_gone=False)
            found = self._place(chosen)
            if found is None:
                self.plan.rollback(checkpoint)
                chosen[key] = victim
            else:
                slices = found
        return slices

    def _place(self, chosen: dict[str, Victim]) -> list[Slice] | None:
        """The claimant's places with `chosen` gone, for which the limits leave so much more."""
        ask = self.ask._replace(room=self._room(chosen.values()))
        checkpoint = self.plan.checkpoint()
        slices = place_gang(self.plan, ask, self.tasks, self.least)
        self.plan.rollback(checkpoint)
        return slices

    def _room(self, chosen: Iterable[Victim]) -> Room:
        """The limits when these have gone: jobs of the claimant's own tenant count against the same ones. A job of QoS
        guaranteed is limited by its own kind, which nobody makes way for."""
        room = self.ask.room
        if room == NO_LIMIT:
            return room
        is_guaranteed = self.job.spec.qos is Qos.GUARANTEED
        for victim in chosen:
            if victim.job.tenant != self.job.tenant:
                continue
            for piece in victim.pieces:
                model = self.fleet.model_of(piece.gpu_uuids[0]) if piece.gpu_uuids else ""
                charge = 0 if is_guaranteed else piece.charge_milli
                room = room.less(-charge, model, -piece.cpu_milli, -piece.memory_mib)
        return room

    def _chosen(self, keys: Iterable[str]) -> dict[str, Victim]:
        found = {key: self.victims.of(key) for key in sorted(keys)}
        return {key: victim for key, victim in found.items() if victim is not None}

    def _move(self, victim: Victim, *, is_gone: bool) -> None:
        move = self.plan.give if is_gone else self.plan.take
        for piece in victim.pieces:
            move(victim.job.tenant, piece, None, victim.job.created_by.user, victim.key)


def _cost_per_task(target: _Target) -> tuple[int, float, int, int, int]:
    cost, tasks = target.cost, target.tasks
    return cost.repeated, cost.charge_milli / tasks, cost.age, target.node, target.spot


def _card_amounts(victim: Victim, uuid: str) -> tuple[int, int]:
    """What a victim frees of one card."""
    milli = mib = 0
    for piece in victim.pieces:
        for place, held_mib in zip(piece.gpu_uuids, piece.held_mib, strict=True):
            if place == uuid:
                milli += piece.gpu_milli
                mib += held_mib
    return milli, mib


def _tasks_now(plan: Plan, ask: Ask) -> int:
    """How many tasks of `ask` fit now over all nodes, claims aside."""
    return int(plan.fleet.scores.of(ask.request).counts().sum())
