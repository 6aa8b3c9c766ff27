"""A what-if over the hardware of sleeping nodes: which of them would let waiting jobs start.

Pure integers. A host is looked at empty (asleep, or on its way back) or as it is (awake, for gangs that need both).
Jobs are taken in their order, each against what the earlier ones leave, so that no two count on the same card.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from gpushare.core.capacity import domain_of, has_labels, host_need, matches_card, share_on, tier_for
from gpushare.core.events import AttemptsAllocated, Event
from gpushare.core.gates import Gates
from gpushare.core.kinds import Topology
from gpushare.core.model import WHOLE_CARD_MILLI, Gpu, GpuInventory, Job, Node, Slice, TaskRequest
from gpushare.core.placement.ask import Room
from gpushare.core.placement.claims import Claim, Owner
from gpushare.core.quota import QuotaTree
from gpushare.core.reservations import claims
from gpushare.core.shared_paths import placed_request, shares
from gpushare.core.state import ClusterState

# Gangs that also count on what is free on nodes that are awake: each of them costs a look at every card.
_GANGS_MAX = 16


class _Card:
    """What is left of one card in this what-if."""

    __slots__ = ("inventory", "is_whole", "mib", "milli")

    def __init__(self, inventory: GpuInventory, milli: int, mib: int, is_whole: bool) -> None:
        self.inventory, self.milli, self.mib, self.is_whole = inventory, milli, mib, is_whole

    def copy(self) -> _Card:
        return _Card(self.inventory, self.milli, self.mib, self.is_whole)

    def use(self, milli: int, mib: int) -> None:
        self.milli -= milli
        self.mib -= mib
        self.is_whole = False


class _Host:
    """What is left of one node. `is_fresh`: all of it."""

    def __init__(self, node: Node, cpu_milli: int, memory_mib: int, cards: list[_Card], *, is_fresh: bool) -> None:
        self.node, self.cpu_milli, self.memory_mib, self.cards = node, cpu_milli, memory_mib, cards
        self.is_fresh = is_fresh
        # Requests that it holds no task of; what is left only shrinks.
        self.full_for: set[TaskRequest] = set()

    @classmethod
    def empty(cls, node: Node) -> _Host:
        """As it comes back from its sleep."""
        cards = [_empty_card(gpu) for gpu in node.gpus.values() if gpu.is_placeable]
        return cls(node, node.cpu_milli, node.memory_mib, cards, is_fresh=True)

    @classmethod
    def as_it_is(cls, node: Node) -> _Host:
        cards = [_free_card(gpu) for gpu in node.gpus.values() if gpu.is_placeable]
        return cls(node, node.free_cpu_milli, node.free_memory_mib, cards, is_fresh=False)

    def scratch(self) -> _Host:
        return _Host(self.node, self.cpu_milli, self.memory_mib, [c.copy() for c in self.cards], is_fresh=False)

    def kind(self) -> object:
        """Fresh and empty hosts of one kind hold the same."""
        told = ((card.inventory, card.milli) for card in self.cards)
        cards = tuple((card.model, card.usable_mib, card.tiers, milli) for card, milli in told)
        node = self.node
        return (
            cards,
            len(node.gpus),
            node.cpu_milli,
            node.memory_mib,
            tuple(sorted(node.labels.items())),
            node.shared_paths,
        )

    def take(self, request: TaskRequest, domain: str | None = None) -> Slice | None:
        """Room for one task, which is gone from here on; None where there is none. Only the slice's amounts count."""
        cards = [c for c in self.cards if matches_card(request, c.inventory)]
        cards = [c for c in cards if domain is None or domain_of(c.inventory) == domain]
        if not (has_labels(request, self.node.labels) and shares(request, self.node.shared_paths)):
            return None
        if request.is_cpu:
            return self._hold(request, [], 0, 0, 0)
        cards = [c for c in cards if tier_for(request, c.inventory.tiers) is not None]
        if not request.is_share:
            whole = [c for c in cards if c.is_whole][: request.gpus]
            return None if len(whole) < request.gpus else self._hold(request, whole, WHOLE_CARD_MILLI, 0, 0)
        for card in cards:
            share = share_on(request, card.inventory.usable_mib)
            if share.milli <= card.milli and share.mib <= card.mib:
                return self._hold(request, [card], share.milli, share.mib, share.charge_milli)
        return None

    def _hold(self, request: TaskRequest, cards: list[_Card], milli: int, mib: int, charge_milli: int) -> Slice | None:
        cpu, memory = host_need(request, self.node, milli * len(cards))
        if cpu > self.cpu_milli or memory > self.memory_mib:
            return None
        self.is_fresh = False
        self.cpu_milli -= cpu
        self.memory_mib -= memory
        for card in cards:
            card.use(card.milli if request.gpus else milli, card.mib if request.gpus else mib)
        return Slice(
            task=0,
            node=self.node.name,
            gpu_uuids=tuple(c.inventory.uuid for c in cards),
            cpu_milli=cpu,
            memory_mib=memory,
            charge_milli=WHOLE_CARD_MILLI * request.gpus or charge_milli,
        )

    def without(self, promised: Iterable[Claim]) -> _Host:
        """The same less what is promised to others."""
        left = self.scratch()
        for claim in promised:
            if claim.whole_node:
                left.cards, left.cpu_milli, left.memory_mib = [], 0, 0
                return left
            cpu, memory = claim.hosts.get(self.node.name, (0, 0))
            left.cpu_milli -= cpu
            left.memory_mib -= memory
            for card in left.cards:
                amount = claim.cards.get((self.node.name, card.inventory.uuid))
                if amount is not None:
                    card.use(*amount)
        return left


def _empty_card(gpu: Gpu) -> _Card:
    return _Card(gpu.inventory, gpu.capacity_milli, gpu.inventory.usable_mib, is_whole=True)


def _free_card(gpu: Gpu) -> _Card:
    return _Card(gpu.inventory, gpu.free_milli, gpu.free_mib, is_whole=not (gpu.holds or gpu.stranger_mib))


class Stop(NamedTuple):
    """So many tasks on that host."""

    host: _Host
    tasks: int
    domain: str | None = None


class WakePlan:
    """`woken` are the nodes to wake so far, `wanted` those of `due` (idle ones, about to sleep) that a job may use."""

    def __init__(
        self,
        state: ClusterState,
        now_ms: int,
        asleep: Iterable[Node],
        coming: Iterable[Node],
        due: Collection[str],
        decided: Collection[Event],
    ) -> None:
        self._state, self._now_ms, self._decided = state, now_ms, decided
        self._asleep = [_Host.empty(node) for node in asleep]
        self._coming = [_Host.empty(node) for node in coming]
        self._due = [_Host.as_it_is(state.nodes[name]) for name in due]
        self.woken: list[str] = []
        self.wanted: set[str] = set()
        # Kinds of hosts as numbers, which are quick to look up.
        self._kinds: dict[object, int] = {}
        self._kind_of: dict[str, int] = {}
        self._counted: dict[tuple[int, TaskRequest, int], Stop | None] = {}
        self._hopeless: set[object] = set()
        self._gangs = 0
        self._awake: list[_Host] | None = None
        self._promises: dict[str, list[Claim]] = {}
        self._tree = QuotaTree(state)
        self._gates = Gates(state, self._tree)
        self._read_decided()
        self._read_promises()

    def consider(self, job: Job) -> None:
        """Wake what `job` needs, or note what it may use of the nodes that are on their way or about to sleep."""
        spec, who = job.spec, (job.tenant, job.created_by.user)
        question = (who, placed_request(job), spec.least_tasks, spec.topology, spec.max_run_ms, spec.qos)
        if question in self._hopeless or self._gates.cap(job) is not None:
            return
        kept = self._kept(job)
        if kept is not None and self._is_within(job, self._pieces(job, [kept])):
            self._take(job, kept)
        stops = self._stops(job)
        pieces = [] if stops is None else self._pieces(job, stops)
        if stops is None or not self._is_within(job, pieces):
            self._hopeless.add(question)
            return
        for stop in stops:
            self._take(job, stop)
        self._count(job, tuple(pieces))

    # -- where

    def _stops(self, job: Job) -> list[Stop] | None:
        """Where its tasks would go, nodes to be woken last and as few of them as can be; None where they would not."""
        if not _is_spread(job):
            return self._on_one(job)
        near, far = self._each(job, (*self._coming, *self._due)), self._each(job, self._asleep)
        if not (near or far) or self._gangs == _GANGS_MAX:
            return None
        self._gangs += 1
        here, missing = _fill(self._each(job, self._hosts_awake()), job.spec.least_tasks)
        if not missing:
            # It fits without: something else holds it back.
            return None
        soon, missing = _fill(near, missing)
        later, missing = _fewest(far, missing)
        return None if missing else [*here, *soon, *later]

    def _kept(self, job: Job) -> Stop | None:
        """The pass has tried the nodes that are awake; one about to sleep that would hold the whole job all the same is
        left awake, as what keeps the job from it may pass."""
        return None if _is_spread(job) else self._first(job, self._due)

    def _on_one(self, job: Job) -> list[Stop] | None:
        stop = self._first(job, self._coming) or self._first(job, self._asleep)
        return None if stop is None else [stop]

    def _first(self, job: Job, hosts: Iterable[_Host]) -> Stop | None:
        """The first host that holds the whole job."""
        least = job.spec.least_tasks
        stops = (self._stop(job, host, least) for host in hosts)
        return next((stop for stop in stops if stop is not None and stop.tasks == least), None)

    def _each(self, job: Job, hosts: Iterable[_Host]) -> list[Stop]:
        stops = (self._stop(job, host, job.spec.least_tasks) for host in hosts)
        return [stop for stop in stops if stop is not None]

    def _stop(self, job: Job, host: _Host, most: int) -> Stop | None:
        """How many of up to `most` tasks the host holds; None for none."""
        request, is_near = placed_request(job), job.spec.topology is Topology.DOMAIN
        if request in host.full_for:
            return None
        promised = self._promised(host, job)
        if promised:
            return _count(host.without(promised), request, most, is_near, host)
        if is_near or not host.is_fresh:
            found = _count(host, request, most, is_near, host)
            if found is None:
                host.full_for.add(request)
            return found
        key = (self._kind(host), request, most)
        if key not in self._counted:
            self._counted[key] = _count(host, request, most, is_near, host)
        found = self._counted[key]
        return None if found is None else found._replace(host=host)

    def _kind(self, host: _Host) -> int:
        kind = self._kind_of.get(host.node.name)
        if kind is None:
            kind = self._kind_of[host.node.name] = self._kinds.setdefault(host.kind(), len(self._kinds))
        return kind

    def _hosts_awake(self) -> list[_Host]:
        if self._awake is None:
            nodes = [n for n in self._state.nodes.values() if n.is_placeable]
            due = {host.node.name for host in self._due}
            self._awake = [_Host.as_it_is(node) for node in nodes if node.name not in due]
            self._use_decided(self._awake)
        return self._awake

    def _use_decided(self, hosts: list[_Host]) -> None:
        by_name = {host.node.name: host for host in hosts}
        for event in self._decided:
            for piece in event.slices if isinstance(event, AttemptsAllocated) else ():
                host = by_name.get(piece.node)
                if host is None:
                    continue
                host.cpu_milli -= piece.cpu_milli
                host.memory_mib -= piece.memory_mib
                for card in host.cards:
                    if card.inventory.uuid in piece.gpu_uuids:
                        card.use(piece.gpu_milli, piece.held_mib[piece.gpu_uuids.index(card.inventory.uuid)])

    def _promised(self, host: _Host, job: Job) -> list[Claim]:
        """What of the host is promised to others by the time that `job` ends."""
        known = self._promises.get(host.node.name)
        if not known:
            return []
        owner = Owner(job.tenant, job.created_by.user, job.key)
        ends_ms = self._now_ms + job.spec.max_run_ms if job.spec.max_run_ms else None
        return [c for c in known if not c.entitles(owner) and (ends_ms is None or c.start_ms < ends_ms)]

    # -- limits

    def _read_decided(self) -> None:
        """The limits as the pass leaves them."""
        for event in self._decided:
            if isinstance(event, AttemptsAllocated):
                self._count(self._state.jobs[event.job], event.slices, starts=not event.grow)

    def _read_promises(self) -> None:
        for claim in claims(self._state, self._now_ms):
            for node in dict.fromkeys((*claim.hosts, *(node for node, _ in claim.cards))):
                self._promises.setdefault(node, []).append(claim)

    def _count(self, job: Job, pieces: tuple[Slice, ...], starts: bool = True) -> None:
        self._tree.add(job, pieces, tuple(self._model(piece) for piece in pieces))
        if starts:
            self._gates.started(job)

    def _model(self, piece: Slice) -> str:
        return self._state.nodes[piece.node].gpus[piece.gpu_uuids[0]].inventory.model if piece.gpu_uuids else ""

    def _pieces(self, job: Job, stops: list[Stop]) -> list[Slice]:
        """The slices of these stops, of which nothing is taken yet."""
        pieces: list[Slice] = []
        for stop in stops:
            host = stop.host.without(self._promised(stop.host, job))
            taken = (host.take(placed_request(job), stop.domain) for _ in range(stop.tasks))
            pieces += [piece for piece in taken if piece is not None]
        return pieces

    def _is_within(self, job: Job, pieces: list[Slice]) -> bool:
        room: Room = self._tree.room(job)
        for piece in pieces:
            model = self._model(piece)
            if room.milli is not None and piece.charge_milli > room.milli:
                return False
            if any(name == model and piece.charge_milli > left for name, left in room.by_model):
                return False
            if room.cpu_milli is not None and piece.cpu_milli > room.cpu_milli:
                return False
            if room.memory_mib is not None and piece.memory_mib > room.memory_mib:
                return False
            room = room.less(piece.charge_milli, model, piece.cpu_milli, piece.memory_mib)
        return True

    # -- taking

    def _take(self, job: Job, stop: Stop) -> None:
        host = stop.host
        for _ in range(stop.tasks):
            host.take(placed_request(job), stop.domain)
        if host in self._due:
            self.wanted.add(host.node.name)
        elif host in self._asleep:
            self._asleep.remove(host)
            self._coming.append(host)
            self.woken.append(host.node.name)


def _is_spread(job: Job) -> bool:
    """Whether its tasks may be on several nodes."""
    return job.spec.least_tasks > 1 and job.spec.topology is Topology.ANY


def _count(host: _Host, request: TaskRequest, most: int, is_near: bool, named: _Host) -> Stop | None:
    """The most tasks that fit, up to `most`; `is_near`: in one card domain. The host itself stays as it is."""
    domains: list[str | None] = [None]
    if is_near:
        domains = list(dict.fromkeys(domain_of(card.inventory) for card in host.cards))
    best: Stop | None = None
    for domain in domains:
        left, tasks = host.scratch(), 0
        while tasks < most and left.take(request, domain) is not None:
            tasks += 1
        if tasks > (best.tasks if best else 0):
            best = Stop(named, tasks, domain)
    return best


def _fill(stops: Iterable[Stop], tasks: int) -> tuple[list[Stop], int]:
    """The first stops for so many tasks, and how many are left."""
    chosen: list[Stop] = []
    for stop in stops:
        if not tasks:
            break
        chosen.append(stop._replace(tasks=min(stop.tasks, tasks)))
        tasks -= chosen[-1].tasks
    return chosen, tasks


def _fewest(stops: Iterable[Stop], tasks: int) -> tuple[list[Stop], int]:
    """As few stops as can be: the largest, and for the rest the smallest that is enough."""
    left = sorted(stops, key=lambda s: -s.tasks)
    chosen: list[Stop] = []
    while tasks and left:
        enough = [stop for stop in left if stop.tasks >= tasks]
        stop = enough[-1] if enough else left[0]
        left.remove(stop)
        chosen.append(stop._replace(tasks=min(stop.tasks, tasks)))
        tasks -= chosen[-1].tasks
    return chosen, tasks
