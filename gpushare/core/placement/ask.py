"""One question to the cluster: where can such a task be now, for whom, until when, and within which limits.

Pure nouns. `Field` is a question as the fleet sees it: the scores of the request where its limits let it be, and what
is promised to others.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gpushare.core.kinds import Topology
from gpushare.core.model import TaskRequest
from gpushare.core.placement.claims import Owner
from gpushare.core.placement.fleet import Fleet
from gpushare.core.placement.policy import INFINITE, BoolArray, FloatArray, IntArray
from gpushare.core.placement.promised import Promised
from gpushare.core.placement.scores import Needs


class Room(NamedTuple):
    """What the limits leave: charge in all and by model (a model that is not named is free), host CPU and memory. None
    is no limit."""

    milli: int | None = None
    by_model: tuple[tuple[str, int], ...] = ()
    cpu_milli: int | None = None
    memory_mib: int | None = None

    def less(self, charge_milli: int, model: str, cpu_milli: int, memory_mib: int) -> Room:
        """What is left of it after a task with this charge on cards of `model`."""
        if self == NO_LIMIT:
            return self
        return Room(
            None if self.milli is None else self.milli - charge_milli,
            tuple((name, left - charge_milli if name == model else left) for name, left in self.by_model),
            None if self.cpu_milli is None else self.cpu_milli - cpu_milli,
            None if self.memory_mib is None else self.memory_mib - memory_mib,
        )


NO_LIMIT = Room()


class Ask(NamedTuple):
    """`end_ms`: when the task surely ends if it starts now (None: nobody knows). `job`: the key of its job, which may
    use what is held for it. Nodes of `avoid` are taken last; nodes outside `only` not at all."""

    request: TaskRequest
    tenant: str = ""
    user: str = ""
    job: str = ""
    end_ms: int | None = None
    room: Room = NO_LIMIT
    topology: Topology = Topology.ANY
    avoid: frozenset[str] = frozenset()
    only: frozenset[str] | None = None

    @property
    def owner(self) -> Owner:
        return Owner(self.tenant, self.user, self.job)


class Field:
    """`ask` on `fleet`. `is_barred`: the limits leave no kind of card that the request could be on."""

    def __init__(self, fleet: Fleet, ask: Ask, dearest_milli: int | None = None) -> None:
        self.fleet, self.ask = fleet, ask
        self.scores = fleet.scores.of(ask.request)
        self.is_barred = False
        self._limit(ask.room, dearest_milli)
        self.promised: Promised | None = None
        if fleet.claims is not None:
            self.promised = fleet.promised(ask.end_ms, ask.owner)
        needs = self.scores.needs
        self._short_hosts: BoolArray | None = None
        if ask.room.cpu_milli is not None or ask.room.memory_mib is not None:
            self._short_hosts = short_hosts(fleet, needs, ask.room)
        self._is_plain = (
            self.promised is None
            and self._short_hosts is None
            and not ask.avoid
            and ask.only is None
            and not (fleet.is_loaded and fleet.load_weight and ask.request.is_share)
        )

    def _limit(self, room: Room, dearest_milli: int | None) -> None:
        needs = self.scores.needs
        if room.milli is not None:
            dearest_milli = room.milli if dearest_milli is None else min(room.milli, dearest_milli)
        if (dearest_milli is None or needs.most_charge <= dearest_milli) and not room.by_model:
            return
        barred = barred_kinds(self.fleet, needs, room, dearest_milli)
        if barred:
            self.scores = self.fleet.scores.of(self.ask.request, barred)
            self.is_barred = not self.scores.needs.charge_of_model

    def best(self) -> int | None:
        """The best card (shares) or node (others) by id, or None."""
        if self.is_barred:
            return None
        if self._is_plain:
            return self.scores.best()
        return None if self.scores.best_kept() is None else self._least(self.values())

    def best_of(self, places: IntArray | slice) -> int | None:
        """The best of some cards (shares) or nodes (others), or None."""
        self.scores.update()
        whole = self.scores.values if self._is_plain else self.values()
        values = whole[places]
        if not len(values):
            return None
        found = int(values.argmin())
        if values[found] == INFINITE:
            return None
        return places.start + found if isinstance(places, slice) else int(places[found])

    def values(self) -> FloatArray:
        """The scores with all that this question alone leaves out."""
        fleet, ask = self.fleet, self.ask
        self.scores.update()
        if self.promised is None:
            values = self.scores.values.copy()
        else:
            self.promised.update()
            values = self.promised.mask(self.scores)
        for barred in (self._short_hosts, self._outside()):
            if barred is not None:
                values[barred[fleet.node_of] if ask.request.is_share else barred] = INFINITE
        if fleet.is_loaded and fleet.load_weight and ask.request.is_share:
            self._steer(values)
        return values

    def counts(self) -> IntArray:
        """How many such tasks each node holds now, one by one; see `task_counts`. Charges are not counted."""
        if self.is_barred:
            return np.zeros(len(self.fleet.names), np.int64)
        if self.promised is None:
            counts = self.scores.counts().copy()
        else:
            self.promised.update()
            counts = self.promised.mask_counts(self.scores)
        for barred in (self._short_hosts, self._outside()):
            if barred is not None:
                counts[barred] = 0
        return counts

    def _outside(self) -> BoolArray | None:
        only = self.ask.only
        if only is None:
            return None
        outside = np.ones(len(self.fleet.names), np.bool_)
        outside[[self.fleet.node_id[n] for n in only if n in self.fleet.node_id]] = False
        return outside

    def _least(self, values: FloatArray) -> int | None:
        """The best of `values`; one on a node to avoid only where there is no other."""
        place = int(values.argmin())
        if values[place] == INFINITE:
            return None
        if self.ask.avoid:
            avoided = avoided_nodes(self.fleet, self.ask)
            mask = avoided[self.fleet.node_of] if self.ask.request.is_share else avoided
            elsewhere = np.where(mask, INFINITE, values)
            other = int(elsewhere.argmin())
            if elsewhere[other] < INFINITE:
                return other
        return place

    def _steer(self, values: FloatArray) -> None:
        """Busy cards later: at weight 1 each step of load outweighs all that the policy tells apart."""
        fits = np.isfinite(values)
        if not fits.any():
            return
        least = values.min()
        reach = float(values.max(where=fits, initial=least)) - float(least)
        values += self.fleet.load_weight * max(1.0, reach * (1 + 2**-20)) * self.fleet.load_steps


def barred_kinds(fleet: Fleet, needs: Needs, room: Room, dearest_milli: int | None) -> frozenset[int]:
    """Kinds of cards on which one task's charge would pass the limits."""
    barred, by_model = [], dict(room.by_model)
    for kind, grant in enumerate(needs.grants):
        if grant is None:
            continue
        charge, left = grant.share.charge_milli, by_model.get(fleet.kinds[kind].model)
        if (dearest_milli is not None and charge > dearest_milli) or (left is not None and charge > left):
            barred.append(kind)
    return frozenset(barred)


def short_hosts(fleet: Fleet, needs: Needs, room: Room) -> BoolArray | None:
    """Nodes on which one task would take more CPU or host memory than the limits leave; None when there are none."""
    milli = needs.least_milli if needs.request.is_share else needs.task_milli()
    cpu, memory = needs.host_on(fleet, fleet.all_nodes, milli)
    short = np.zeros(len(fleet.names), np.bool_)
    if room.cpu_milli is not None:
        short |= np.asarray(cpu) > room.cpu_milli
    if room.memory_mib is not None:
        short |= np.asarray(memory) > room.memory_mib
    return short if short.any() else None


def avoided_nodes(fleet: Fleet, ask: Ask) -> BoolArray:
    avoided = np.zeros(len(fleet.names), np.bool_)
    avoided[[fleet.node_id[n] for n in ask.avoid if n in fleet.node_id]] = True
    return avoided
