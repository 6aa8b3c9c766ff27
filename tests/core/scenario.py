"""A small text language for scheduling cases, run on the real core.

One statement a line, `#` starts a comment. A name stands for a job; `a` with count=3 is a1, a2, a3.

    tenant T [limit=MILLI] [SETTING]... node N CARDS [mib=M] [cpu=MILLI] [memory=MIB] [model=NAME] [suspend=yes]
                                                      [shared=PATH,...]
    set T SETTING...                    SETTING: parent=T guaranteed=MILLI limit=MILLI|none weight=N max_running=N
                                        per_user=N cpu_limit=MILLI memory_limit=MIB min_run=MS quota=MODEL:MILLI[:MILLI]
                                        default_run=MS max_run=MS
    submit T NAME [count=K] [milli=M] [mib=M] [gpus=N] [tasks=N] [priority=P] [retries=R] [limit_ms=N] [cpu=M]
           [memory=M] [dir=PATH] [min_tasks=N] [qos=Q] [preemption=P] [on_failure=F] [topology=T] [model=A|B]
           [start_within=MS] [user=U] [after=NAME[:KIND],...] [array=K[%N]]   of an array: name0 ... are the children
           [codes=N,N]
    reserve NAME T|maintenance START END [gpus=N] [milli=M] [mib=M] [node=N,...] [repeat=MS] [users=U,...] (ms from now)
    overcommit N MILLI
    extend NAME +MS|TO:MS [role=R]     requeue NAME     refuses REASON (what the last of these was answered)
    cycle      run NAME      exit NAME CODE [task=I]      lose NAME REASON [task=I]      cancel NAME
    stopped NAME   cordon N   uncordon N    silent N    back N    disconnect N    wait MS    on NAME NODE
    settings FIELD=N...   obey (all agents, every order to stop or to suspend)
    remember (passes keep a brain from here on, as a leader does; else each begins with a new one)
    expect NAME STATE [REASON]   code NAME CODE   round NAME K   card N INDEX milli=M [mib=M]   stops NAME TASKS
    goes NAME... (told to make way)   stays NAME... (not told)   share T MILLI (what T is charged)
"""

from __future__ import annotations

import msgspec
from cluster import Cluster, card, user_of

from gpushare.core import explain
from gpushare.core.brain import Brain
from gpushare.core.commands import (
    CordonNode,
    CreateReservation,
    CreateTenant,
    ExtendJob,
    NodeSessionClosed,
    RawResources,
    Rejection,
    RequeueJob,
    SetNode,
    UncordonNode,
    UpdateTenant,
)
from gpushare.core.kinds import (
    AttemptState,
    DependencyKind,
    Enforcement,
    OnTaskFailure,
    PreemptionMode,
    Qos,
    Role,
    Topology,
)
from gpushare.core.model import Dependency, Job, ModelQuota, TenantSettings, TierOffer

_SUSPENDING = (
    TierOffer("exclusive", Enforcement.HARD, can_suspend=True),
    TierOffer("timeslice", Enforcement.SOFT, can_suspend=True),
)
# Options of `tenant` and `set` that are one number.
_NUMBERS = {
    "guaranteed": "guaranteed_milli",
    "weight": "weight",
    "max_running": "max_running_jobs",
    "per_user": "max_running_per_user",
    "cpu_limit": "cpu_limit_milli",
    "memory_limit": "memory_limit_mib",
    "min_run": "min_run_ms",
    "default_run": "default_run_ms",
    "max_run": "max_run_ms",
}


class Scenario:
    def __init__(self) -> None:
        self.cluster = Cluster(tenants=())
        self.jobs: dict[str, str] = {}
        self.arrays: dict[str, str] = {}
        self.inventory: dict[str, dict[str, object]] = {}
        # To the last extend or requeue; a refusal that nobody expected fails.
        self.answer: object = None

    def run(self, text: str) -> Scenario:
        for number, line in enumerate(text.strip().splitlines(), 1):
            words = line.split("#")[0].split()
            if words:
                try:
                    self._statement(words)
                except AssertionError as err:
                    raise AssertionError(f"line {number}: {line.strip()}\n{err}") from err
        assert self.cluster.replayed().encode() == self.cluster.state.encode()
        return self

    def job(self, name: str) -> Job:
        return self.cluster.state.jobs[self.jobs[name]]

    def _statement(self, words: list[str]) -> None:
        plain = [w for w in words[1:] if "=" not in w]
        options = dict(w.split("=", 1) for w in words[1:] if "=" in w)
        refused = isinstance(self.answer, Rejection) and words[0] != "refuses"
        assert not refused, f"the statement before was refused: {self.answer}"
        getattr(self, f"_{words[0]}")(*plain, **options)

    # -- statements

    def _tenant(self, tenant: str, **options: str) -> None:
        self.cluster.must(CreateTenant(tenant=tenant, settings=_settings(TenantSettings(), options)))

    def _set(self, tenant: str, **options: str) -> None:
        old = self.cluster.state.tenants[tenant].settings
        self.cluster.must(UpdateTenant(tenant=tenant, settings=_settings(old, options)))

    def _overcommit(self, node: str, milli: str) -> None:
        self.cluster.must(SetNode(node, int(milli)))

    def _reserve(self, name: str, tenant: str, start: str, end: str, **options: str) -> None:
        now_ms = self.cluster.now_ms
        maintenance = tenant == "maintenance"
        self.cluster.must(
            CreateReservation(
                name=name,
                tenant="" if maintenance else tenant,
                maintenance=maintenance,
                users=_words(options.get("users")),
                nodes=_words(options.get("node")),
                gpus=_int(options.get("gpus")),
                gpu_milli=_int(options.get("milli")),
                gpu_memory_mib=_int(options.get("mib")),
                start_ms=now_ms + int(start),
                end_ms=now_ms + int(end),
                repeat_ms=int(options.get("repeat", "0")),
            )
        )

    def _node(
        self,
        node: str,
        cards: str,
        mib: str = "81559",
        cpu: str = "128000",
        memory: str = "1048576",
        model: str = "H100",
        suspend: str = "",
        shared: str = "",
    ) -> None:
        tiers = {"tiers": _SUSPENDING} if suspend else {}
        gpus = tuple(card(f"GPU-{node}-{i}", i, int(mib), model, **tiers) for i in range(int(cards)))
        self.inventory[node] = {"gpus": gpus, "cpu_milli": int(cpu), "memory_mib": int(memory)}
        self.inventory[node]["shared_paths"] = _words(shared)
        self.cluster.node(node, 0)
        self._back(node)

    def _back(self, node: str) -> None:
        self.cluster.sync(node, **self.inventory[node])

    def _submit(self, tenant: str, name: str, count: str = "1", **options: str) -> None:
        resources = RawResources(
            gpus=_int(options.get("gpus")),
            gpu_milli=_int(options.get("milli")),
            gpu_memory_mib=_int(options.get("mib")),
            cpu_milli=_int(options.get("cpu")),
            memory_mib=_int(options.get("memory")),
            gpu_model=options.get("model", ""),
        )
        children, _, at_once = options.get("array", "").partition("%")
        jobs = self.cluster.submit(
            tenant,
            int(count),
            who=user_of(tenant, options.get("user", "ann")),
            min_tasks=int(options.get("min_tasks", "0")),
            qos=Qos(options.get("qos", "burst")),
            preemption=PreemptionMode(options.get("preemption", "requeue")),
            on_task_failure=OnTaskFailure(options.get("on_failure", "stop")),
            topology=Topology(options.get("topology", "any")),
            start_within_ms=_int(options.get("start_within")),
            after=tuple(self._dependency(each) for each in _words(options.get("after"))),
            array_indexes=tuple(range(int(children or "0"))),
            array_max_running=int(at_once or "0"),
            working_directory=options.get("dir", "/tmp"),
            resources=resources,
            tasks=int(options.get("tasks", "1")),
            priority=_int(options.get("priority")),
            max_retries=int(options.get("retries", "0")),
            max_run_ms=_int(options.get("limit_ms")),
            requeue_exit_codes=tuple(int(code) for code in _words(options.get("codes"))),
        )
        if children:
            self.arrays[name] = jobs[0].array_key
        for place, job in enumerate(jobs, 0 if children else 1):
            self.jobs[name if len(jobs) == 1 and not children else f"{name}{place}"] = job.key

    def _dependency(self, text: str) -> Dependency:
        name, _, kind = text.partition(":")
        return Dependency(self.arrays.get(name) or self.jobs[name], DependencyKind(kind or "afterok"))

    def _extend(self, name: str, text: str, role: str = "user") -> None:
        job = self.job(name)
        longer, to = (int(text), None) if text.startswith("+") else (None, int(text.removeprefix("TO:")))
        who = msgspec.structs.replace(user_of(job.tenant), role=Role(role))
        self.answer = self.cluster.do(ExtendJob(job.key, longer_by_ms=longer, max_run_ms=to), who)

    def _requeue(self, name: str) -> None:
        job = self.job(name)
        self.answer = self.cluster.do(RequeueJob(job.key), user_of(job.tenant))

    def _refuses(self, reason: str) -> None:
        assert isinstance(self.answer, Rejection), f"it was done: {self.answer}"
        assert self.answer.reason == reason, self.answer
        self.answer = None

    def _remember(self) -> None:
        self.cluster.brain = Brain(self.cluster.state, self.cluster.settings)

    def _cycle(self) -> None:
        self.cluster.cycle()

    def _run(self, name: str) -> None:
        self.cluster.run(self.job(name))

    def _exit(self, name: str, code: str, task: str = "") -> None:
        ok = code == "0"
        for attempt in self._live(name, task):
            state = AttemptState.SUCCEEDED if ok else AttemptState.FAILED
            self.cluster.report(attempt, state, "COMPLETED" if ok else "EXIT_CODE", exit_code=int(code))

    def _lose(self, name: str, reason: str, task: str = "") -> None:
        for attempt in self._live(name, task):
            self.cluster.report(attempt, AttemptState.FAILED, reason, detail="lost")

    def _stopped(self, name: str) -> None:
        """The agents obey their stop orders."""
        for attempt in self._live(name, ""):
            assert attempt.desired_stop, f"{attempt.id} was not told to stop"
            self.cluster.report(attempt, AttemptState.STOPPED, str(attempt.stop_reason), signal=15)

    def _obey(self) -> None:
        for attempt in [a for a in self.cluster.state.attempts.values() if a.is_live]:
            if attempt.desired_stop:
                self.cluster.report(attempt, AttemptState.STOPPED, str(attempt.stop_reason), signal=15)
            elif attempt.desired_suspend and attempt.suspended_ms is None:
                self.cluster.report(attempt, AttemptState.SUSPENDED)

    def _settings(self, **options: str) -> None:
        changed = {field: int(value) for field, value in options.items()}
        self.cluster.settings = msgspec.structs.replace(self.cluster.settings, **changed)

    def _cancel(self, name: str) -> None:
        self.cluster.cancel(self.job(name))

    def _cordon(self, node: str) -> None:
        self.cluster.must(CordonNode(node=node))

    def _uncordon(self, node: str) -> None:
        self.cluster.must(UncordonNode(node=node))

    def _silent(self, node: str) -> None:
        self.cluster.silence(node)

    def _disconnect(self, node: str) -> None:
        self.cluster.must(NodeSessionClosed(node=node))

    def _on(self, name: str, node: str) -> None:
        nodes = {a.slice.node for a in self.job(name).current()}
        assert nodes == {node}, f"{name} is on {nodes}"

    def _wait(self, ms: str) -> None:
        self.cluster.tick(int(ms))

    # -- checks

    def _expect(self, name: str, state: str, reason: str = "") -> None:
        job = self.job(name)
        assert job.state == state, f"{name} is {job.state} ({job.reason}: {job.detail})"
        if reason and state == "QUEUED":
            wait = explain.explain(self.cluster.state, job, self.cluster.now_ms, self.cluster.settings).wait
            assert wait is not None
            assert wait.reason == reason, f"{name} waits with {wait}"
        elif reason:
            assert job.reason == reason, f"{name} has {job.reason}"

    def _code(self, name: str, code: str) -> None:
        assert self.job(name).exit_code == int(code), f"{name} has code {self.job(name).exit_code}"

    def _card(self, node: str, index: str, milli: str, mib: str = "") -> None:
        gpu = self.cluster.state.nodes[node].gpus[f"GPU-{node}-{index}"]
        assert gpu.used_milli == int(milli), f"{gpu.used_milli} milli used"
        if mib:
            assert gpu.used_mib == int(mib), f"{gpu.used_mib} MiB used"

    def _stops(self, name: str, tasks: str) -> None:
        told = [str(a.task) for a in self.job(name).live() if a.desired_stop]
        assert told == tasks.split(","), f"tasks told to stop: {told}"

    def _goes(self, *names: str) -> None:
        for name in names:
            told = [a.desired_stop or a.desired_suspend for a in self.job(name).live()]
            assert told, f"{name} does not run"
            assert all(told), f"{name} is not told to make way"

    def _stays(self, *names: str) -> None:
        for name in names:
            told = [a.desired_stop or a.desired_suspend for a in self.job(name).live()]
            assert told, f"{name} does not run"
            assert not any(told), f"{name} is told to make way"

    def _share(self, tenant: str, milli: str) -> None:
        charge = self.cluster.state.tenants[tenant].charge_milli
        assert charge == int(milli), f"{tenant} is charged {charge}"

    def _round(self, name: str, number: str) -> None:
        assert self.job(name).round == int(number), f"{name} is in round {self.job(name).round}"

    def _live(self, name: str, task: str) -> list[object]:
        return [a for a in self.job(name).live() if not task or a.task == int(task)]


def _int(text: str | None) -> int | None:
    return None if text is None else int(text)


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()


def _settings(old: TenantSettings, options: dict[str, str]) -> TenantSettings:
    changed: dict[str, object] = {field: int(options[name]) for name, field in _NUMBERS.items() if name in options}
    if "parent" in options:
        changed["parent"] = options["parent"]
    if "limit" in options:
        changed["limit_milli"] = None if options["limit"] == "none" else int(options["limit"])
    if "quota" in options:
        quotas = (text.split(":") for text in options["quota"].split(","))
        changed["model_quotas"] = tuple(
            ModelQuota(model, int(milli), int(limit[0]) if limit else None) for model, milli, *limit in sorted(quotas)
        )
    return msgspec.structs.replace(old, **changed)
