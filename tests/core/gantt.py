"""Hand-made schedules with the expected Gantt chart as text, run by the real scheduling pass on virtual time.

One statement a line, `#` starts a comment; a slot is one minute, `at` is 0 unless given. Rows of the chart are cards
(of `lanes` rows each, for shares), columns are slots, letters are jobs; `.` is idle, `-` reserved and unused, `x` shut
for maintenance. Jobs run for `runs` slots (their limit unless given), `limit=0` is no limit.

    node N CARDS [lanes=K] [cpu=MILLI]      tenant T [guaranteed=MILLI] [limit=MILLI]
    job A [at=S] [limit=S] [runs=S] [gpus=N] [milli=M] [cpu=M] [memory=M] [tasks=N] [priority=P] [tenant=T] [user=U]
          [preemption=MODE] [qos=Q] [grace=S] [least=N] [optional=1]
    reserve R from=S to=S tenant=T [at=S] [gpus=N] [milli=M] [nodes=N,N] [users=U,U] [every=S] [until=S]
    maintenance R from=S to=S nodes=N,N [at=S] [every=S]
    cancel A at=S           unreserve R at=S
"""

from __future__ import annotations

from cluster import Cluster, card, raw_job, user_of

from gpushare.core.brain import Brain
from gpushare.core.commands import (
    CoreSettings,
    CreateReservation,
    CreateTenant,
    DeleteReservation,
    Outcome,
    RawResources,
    Rejection,
    SubmitJobs,
)
from gpushare.core.cycle import Pass, schedule
from gpushare.core.kinds import AttemptState, JobState, PreemptionMode, Qos
from gpushare.core.model import Attempt, Job, TenantSettings, TierOffer
from gpushare.core.reservations import window
from gpushare.reasons import Reason

SLOT_MS = 60_000
IDLE, RESERVED, SHUT = ".", "-", "x"
Options = dict[str, str]


class Gantt:
    """`promises`: the starts (in slots) that each job was promised while it was the oldest that waits; `starts`: when
    it did start."""

    def __init__(self, settings: CoreSettings | None = None, tiers: tuple[TierOffer, ...] | None = None) -> None:
        self.cluster = Cluster(tenants=(), settings=settings)
        self.cluster.now_ms = 1_000 * SLOT_MS
        self.zero_ms = self.cluster.now_ms
        self.brain = Brain(self.cluster.state, self.cluster.settings)
        self.tiers = tiers
        self.lanes: dict[str, int] = {}
        self.jobs: dict[str, Job] = {}
        self.runs: dict[str, int] = {}
        self.graces: dict[str, int] = {}
        self._told: dict[str, int] = {}
        self.starts: dict[str, int] = {}
        self.promises: dict[str, list[int]] = {}
        self.decisions: dict[str, Outcome | Rejection] = {}
        self._rows: dict[str, str] = {}
        self._lane_of: dict[tuple[str, str], tuple[int, ...]] = {}
        self._timed: list[tuple[int, str, list[str], Options]] = []

    @property
    def slot(self) -> int:
        return (self.cluster.now_ms - self.zero_ms) // SLOT_MS

    def ms(self, slot: str | int) -> int:
        return self.zero_ms + int(slot) * SLOT_MS

    # -- text

    def read(self, text: str) -> Gantt:
        for line in text.strip().splitlines():
            words = line.split("#")[0].split()
            if not words:
                continue
            plain = [w for w in words[1:] if "=" not in w]
            options = dict(w.split("=", 1) for w in words[1:] if "=" in w)
            if words[0] in ("node", "tenant"):
                getattr(self, f"_{words[0]}")(*plain, **options)
            else:
                self._timed.append((int(options.pop("at", "0")), words[0], plain, options))
        return self

    def run(self, slots: int) -> str:
        """The chart of so many slots from now on."""
        for _ in range(slots):
            self._end_jobs()
            for at, name, plain, options in self._timed:
                if at == self.slot:
                    getattr(self, f"_{name}")(*plain, **options)
            self._passes()
            self._paint()
            self.cluster.tick(SLOT_MS)
        return self.chart()

    def chart(self) -> str:
        width = max(map(len, self._rows), default=0)
        return "\n".join(f"{name:<{width}} {cells}" for name, cells in self._rows.items())

    # -- statements

    def _tenant(self, tenant: str, guaranteed: str = "0", limit: str = "") -> None:
        settings = TenantSettings(guaranteed_milli=int(guaranteed), limit_milli=int(limit) if limit else None)
        self.cluster.must(CreateTenant(tenant=tenant, settings=settings))

    def _node(self, node: str, cards: str, lanes: str = "1", cpu: str = "128000", model: str = "H100") -> None:
        more = {} if self.tiers is None else {"tiers": self.tiers}
        gpus = tuple(card(f"GPU-{node}-{i}", i, 80_000, model, **more) for i in range(int(cards)))
        self.cluster.node(node, 0)
        self.cluster.sync(node, gpus=gpus, cpu_milli=int(cpu))
        self.lanes[node] = int(lanes)
        for i in range(int(cards)):
            for lane in range(int(lanes)):
                self._rows[f"{node}/{i}" + (f".{lane}" if int(lanes) > 1 else "")] = ""

    def _job(
        self,
        name: str,
        limit: str = "0",
        runs: str = "",
        tenant: str = "t",
        user: str = "ann",
        grace: str = "0",
        **o: str,
    ) -> None:
        resources = RawResources(
            gpus=int(o["gpus"]) if "gpus" in o else None,
            gpu_milli=int(o["milli"]) if "milli" in o else None,
            cpu_milli=int(o["cpu"]) if "cpu" in o else None,
            memory_mib=int(o["memory"]) if "memory" in o else None,
        )
        extra: dict[str, object] = {}
        if "preemption" in o:
            extra["preemption"] = PreemptionMode(o["preemption"])
        if "qos" in o:
            extra["qos"] = Qos(o["qos"])
        if "least" in o:
            extra["min_tasks"] = int(o["least"])
        raw = raw_job(
            resources=resources,
            tasks=int(o.get("tasks", "1")),
            priority=int(o.get("priority", "0")),
            max_run_ms=int(limit) * SLOT_MS if int(limit) else None,
            grace_ms=int(grace) * SLOT_MS,
            **extra,
        )
        done = self.cluster.do(SubmitJobs(tenant=tenant, jobs=(raw,)), user_of(tenant, user))
        if isinstance(done, Rejection) and done.reason is Reason.NEVER_FITS and "optional" in o:
            return
        assert isinstance(done, Outcome), done
        job = self.cluster.state.jobs[done.names[0]]
        self.jobs[name], self.runs[name], self.graces[name] = job, int(runs or limit), int(grace)

    def _reserve(self, name: str, **o: str) -> None:
        command = CreateReservation(
            name=name.lower(),
            tenant=o.get("tenant", ""),
            users=_words(o.get("users")),
            maintenance="maintenance" in o,
            nodes=_words(o.get("nodes")),
            gpus=int(o["gpus"]) if "gpus" in o else None,
            gpu_milli=int(o["milli"]) if "milli" in o else None,
            start_ms=self.ms(o["from"]),
            end_ms=self.ms(o["to"]),
            repeat_ms=int(o.get("every", "0")) * SLOT_MS,
            until_ms=self.ms(o["until"]) if "until" in o else 0,
            force="force" in o,
        )
        self.decisions[name] = self.cluster.do(command)

    def _maintenance(self, name: str, **o: str) -> None:
        self._reserve(name, maintenance="1", **o)

    def _unreserve(self, name: str) -> None:
        self.cluster.must(DeleteReservation(name.lower()))

    def _cancel(self, name: str) -> None:
        self.cluster.cancel(self.jobs[name])

    # -- the loop

    def _end_jobs(self) -> None:
        for name, job in self.jobs.items():
            if job.state is not JobState.RUNNING or not self.runs[name]:
                continue
            for attempt in job.live():
                if attempt.started_ms is not None and attempt.started_ms + self.runs[name] * SLOT_MS <= self._now:
                    self.cluster.report(attempt, AttemptState.SUCCEEDED, "COMPLETED", exit_code=0)

    @property
    def _now(self) -> int:
        return self.cluster.now_ms

    def _passes(self) -> None:
        """Passes until nothing happens any more; agents start and suspend at once, and stop after the grace."""
        for _ in range(20):
            self._obey_all()
            done = self._pass()
            if not done.events:
                break
        else:
            raise AssertionError(f"slot {self.slot}: the passes never come to rest: {done.events}")
        waiting = [name for name, job in self.jobs.items() if job.state is JobState.QUEUED]
        head = min(waiting, key=lambda name: self.jobs[name].submit_seq, default="")
        promised_ms = done.starts_ms.get(self.jobs[head].key) if head else None
        if promised_ms is not None:
            self.promises.setdefault(head, []).append((promised_ms - self.zero_ms) // SLOT_MS)

    def _obey_all(self) -> None:
        for job in self.jobs.values():
            for attempt in job.live():
                self._obey(job, attempt)

    def _pass(self) -> Pass:
        """A pass with the brain that is kept; it must decide as a new one does."""
        state, settings = self.cluster.state, self.cluster.settings
        touched, moved = set(state.touched), dict(state.moved)
        fresh = schedule(state, self._now, settings)
        state.touched.update(touched)
        state.moved.update(moved)
        done = schedule(state, self._now, settings, self.brain)
        assert (done.events, done.starts_ms) == (fresh.events, fresh.starts_ms), "a kept brain decides otherwise"
        self.cluster.apply(list(done.events))
        return done

    def _obey(self, job: Job, attempt: Attempt) -> None:
        name = next(n for n, j in self.jobs.items() if j is job)
        if attempt.desired_stop:
            if self.slot - self._told.setdefault(attempt.id, self.slot) < self.graces[name]:
                return
            self.cluster.report(attempt, AttemptState.STOPPED, str(attempt.stop_reason), signal=15)
        elif attempt.desired_suspend and attempt.suspended_ms is None:
            self.cluster.report(attempt, AttemptState.SUSPENDED)
        elif attempt.state is AttemptState.ALLOCATED or (
            attempt.state is AttemptState.SUSPENDED and not attempt.desired_suspend
        ):
            self.cluster.report(attempt, AttemptState.RUNNING, started_ms=self._now)
            self.starts.setdefault(name, self.slot)

    # -- the chart

    def _paint(self) -> None:
        for node in self.cluster.state.nodes.values():
            for gpu in node.gpus.values():
                lanes, cells = self.lanes[node.name], [IDLE] * self.lanes[node.name]
                for attempt_id in sorted(gpu.holds, key=lambda i: (i not in self._known(gpu.uuid), i)):
                    for lane in self._lanes_for(gpu.uuid, attempt_id, gpu.holds[attempt_id].milli, cells):
                        cells[lane] = self._letter(attempt_id)
                free = [lane for lane in reversed(range(lanes)) if cells[lane] == IDLE]
                for lane in free[: self._reserved_lanes(node.name, gpu.uuid)]:
                    cells[lane] = RESERVED
                if self._is_shut(node.name):
                    cells = [SHUT if c in (IDLE, RESERVED) else c for c in cells]
                for lane, cell in enumerate(cells):
                    suffix = f".{lane}" if lanes > 1 else ""
                    self._rows[f"{node.name}/{gpu.inventory.index}{suffix}"] += cell

    def _known(self, uuid: str) -> set[str]:
        return {attempt_id for card_uuid, attempt_id in self._lane_of if card_uuid == uuid}

    def _lanes_for(self, uuid: str, attempt_id: str, milli: int, cells: list[str]) -> tuple[int, ...]:
        """An attempt keeps its rows while it runs."""
        key = (uuid, attempt_id)
        if key not in self._lane_of:
            kept = {lane for (u, a), held in self._lane_of.items() if u == uuid and self._is_live(a) for lane in held}
            free = [lane for lane, cell in enumerate(cells) if cell == IDLE and lane not in kept]
            self._lane_of[key] = tuple(free[: -(-milli * len(cells) // 1000)])
        return self._lane_of[key]

    def _is_live(self, attempt_id: str) -> bool:
        attempt = self.cluster.state.attempt(attempt_id)
        return attempt is not None and attempt.is_live and attempt.suspended_ms is None

    def _letter(self, attempt_id: str) -> str:
        """The last letter of its job's name."""
        key = self.cluster.state.attempts[attempt_id].job_key
        return next(name for name, job in self.jobs.items() if job.key == key)[-1]

    def _open_reservations(self) -> list[object]:
        found = []
        for reservation in self.cluster.state.reservations.values():
            now = window(reservation, self._now)
            if now is not None and now.start_ms <= self._now:
                found.append(reservation)
        return found

    def _reserved_lanes(self, node: str, uuid: str) -> int:
        total = 0
        for r in self._open_reservations():
            milli = sum(c.milli for c in r.cards if c.gpu_uuid == uuid)
            gpu = self.cluster.state.nodes[node].gpus[uuid]
            for attempt_id, hold in gpu.holds.items():
                job = self.cluster.state.jobs[self.cluster.state.attempts[attempt_id].job_key]
                if job.tenant == r.tenant and (not r.users or job.created_by.user in r.users):
                    milli -= hold.milli
            total += max(0, -(-milli * self.lanes[node] // 1000))
        return total

    def _is_shut(self, node: str) -> bool:
        return any(r.maintenance and node in r.nodes for r in self._open_reservations())


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()


def check_chart(text: str, settings: CoreSettings | None = None, tiers: tuple[TierOffer, ...] | None = None) -> Gantt:
    """Run a schedule and compare: the lines whose first word holds a "/" are the expected chart."""
    lines = [line.strip() for line in text.strip().splitlines()]
    expected = [line for line in lines if line and "/" in line.split()[0]]
    gantt = Gantt(settings, tiers).read("\n".join(line for line in lines if line not in expected))
    slots = max(len(line.split()[1]) for line in expected)
    chart = gantt.run(slots)
    want = "\n".join(" ".join(line.split()) for line in expected)
    got = "\n".join(" ".join(line.split()) for line in chart.splitlines())
    assert got == want, f"\nexpected\n{want}\ngot\n{got}\npromised {gantt.promises}"
    assert gantt.cluster.replayed().encode() == gantt.cluster.state.encode()
    return gantt
