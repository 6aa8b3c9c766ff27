"""Gangs as text cases: what one task's end is for the others, growth, preemption; and ranks and ports. Slices are
placed by hand, so that nothing here depends on how a pass places.

Beyond the words of `scenario`:

    gang NAME tasks=N [least=N] [policy=continue] [retries=N] [preempt=cancel]    place NAME NODE...    (tasks from 0)
    grow NAME TASK:NODE...      missing NAME TASKS|none [wake=MS]      preempt NAME
    obey NAME CODE [task=I]     (it ends by itself with this code after it was told to stop)
    count NAME retries|infra|preempted K
"""

from __future__ import annotations

import msgspec
import pytest
from cluster import Cluster, user_of
from hypothesis import given, settings
from hypothesis import strategies as st
from scenario import Scenario

from gpushare.core.events import AttemptsAllocated, AttemptStopRequested, JobsCreated
from gpushare.core.gangs import gang_port, missing_tasks, place_of
from gpushare.core.kinds import AttemptState, JobState, OnTaskFailure, PreemptionMode
from gpushare.core.model import Job, JobSpec, Slice, TaskRequest
from gpushare.core.orders import StartOrder, orders_after_sync, orders_for
from gpushare.reasons import Reason
from gpushare.scheduler import convert_nodes

CLAIMANT = "vision/999"
PORTS = range(29_500, 29_540)


def submit_gang(cluster: Cluster, **fields: object) -> Job:
    base: dict[str, object] = {"argv": ("true",), "resources": TaskRequest(gpus=0), "working_directory": "/"}
    number = cluster.state.tenants["vision"].next_number
    event = JobsCreated(tenant="vision", number=number, spec=JobSpec(**{**base, **fields}))  # type: ignore[arg-type]
    cluster.apply([event], user_of("vision"))
    return cluster.state.jobs[f"vision/{number}"]


def place(cluster: Cluster, job: Job, tasks: dict[int, str], *, grow: bool = False, port: int = 0) -> AttemptsAllocated:
    slices = tuple(Slice(task=task, node=node, cpu_milli=1000, memory_mib=64) for task, node in tasks.items())
    event = AttemptsAllocated(job=job.key, round=job.round + 1, slices=slices, grow=grow, master_port=port)
    cluster.apply([event])
    return event


class GangScenario(Scenario):
    def __init__(self) -> None:
        super().__init__()
        self._tenant("vision")
        for node in ("n", "m"):
            self._node(node, "0")

    def _gang(
        self,
        name: str,
        tasks: str,
        least: str = "0",
        policy: str = "stop",
        retries: str = "0",
        preempt: str = "requeue",
    ) -> None:
        job = submit_gang(
            self.cluster,
            tasks=int(tasks),
            min_tasks=int(least),
            on_task_failure=OnTaskFailure(policy),
            max_retries=int(retries),
            preemption=PreemptionMode(preempt),
        )
        self.jobs[name] = job.key

    def _place(self, name: str, *nodes: str) -> None:
        place(self.cluster, self.job(name), dict(enumerate(nodes)))

    def _grow(self, name: str, *tasks: str) -> None:
        wanted = {int(task): node for task, _, node in (text.partition(":") for text in tasks)}
        place(self.cluster, self.job(name), wanted, grow=True)

    def _missing(self, name: str, tasks: str, wake: str = "") -> None:
        found = missing_tasks(self.job(name), self.cluster.now_ms, self.cluster.settings)
        assert ",".join(map(str, found.tasks)) == ("" if tasks == "none" else tasks), found
        assert found.wake_ms == (self.cluster.now_ms + int(wake) if wake else None), found

    def _preempt(self, name: str) -> None:
        live = [a.id for a in self.job(name).live() if not a.desired_stop]
        self.cluster.apply([AttemptStopRequested(a, Reason.PREEMPTED, "makes way", CLAIMANT) for a in live])

    def _obey(self, name: str, code: str, task: str = "") -> None:
        for attempt in self._live(name, task):
            reason = str(attempt.stop_reason)  # type: ignore[attr-defined]
            self.cluster.report(attempt, AttemptState.STOPPED, reason, exit_code=int(code))  # type: ignore[arg-type]

    def _count(self, name: str, what: str, count: str) -> None:
        job = self.job(name)
        found = {"retries": job.retries, "infra": job.infra_retries, "preempted": job.preemptions}
        assert found[what] == int(count), found


CASES = {
    "a task that fails by itself ends its gang": """
        gang g tasks=3
        place g n n m
        run g
        exit g 3 task=1
        stops g 0,2
        stopped g
        expect g FAILED EXIT_CODE
        code g 3
    """,
    "a gang that may lack tasks is ended by a failure all the same, unless it says otherwise": """
        gang g tasks=4 least=2
        place g n n m
        run g
        exit g 3 task=0
        stops g 1,2
        stopped g
        expect g FAILED
    """,
    "the others run on while enough of them live or have succeeded": """
        gang g tasks=4 least=2 policy=continue
        place g n n m m
        run g
        exit g 3 task=1
        exit g 0 task=0
        expect g RUNNING
        exit g 4 task=2
        expect g RUNNING
        exit g 0 task=3
        expect g FAILED EXIT_CODE
        code g 3
    """,
    "below that the gang ends": """
        gang g tasks=4 least=3 policy=continue
        place g n n m m
        run g
        exit g 3 task=1
        expect g RUNNING
        exit g 4 task=2
        stops g 0,3
        stopped g
        expect g FAILED EXIT_CODE
        code g 3
    """,
    "and has its retries, each failed task counting as one": """
        gang g tasks=3 least=2 policy=continue retries=2
        place g n n m
        run g
        exit g 3 task=1
        exit g 3 task=2
        stopped g
        expect g QUEUED
        count g retries 1
        place g n n m
        run g
        exit g 3 task=0
        expect g RUNNING
        exit g 0
        expect g FAILED
    """,
    "a lost task is just that, and comes back after a pause": """
        gang g tasks=4 least=2 policy=continue
        place g n n m m
        run g
        lose g GPU_LOST task=2
        expect g RUNNING
        missing g none wake=1000
        wait 1000
        missing g 2
        grow g 2:n
        missing g none
        expect g RUNNING
        run g
        lose g INFRA task=2
        missing g none wake=2000
        exit g 0
        expect g QUEUED
        count g infra 1
        count g retries 0
    """,
    "a lost task that came back and ended well is forgiven": """
        gang g tasks=3 least=2 policy=continue
        place g n n m
        run g
        lose g INFRA task=2
        wait 1000
        grow g 2:n
        run g
        exit g 0
        expect g SUCCEEDED
    """,
    "a task that is lost again and again is let go of": """
        gang g tasks=2 least=1 policy=continue
        place g n m
        run g
        lose g INFRA task=1
        wait 100000
        grow g 1:m
        lose g INFRA task=1
        wait 100000
        grow g 1:m
        lose g INFRA task=1
        wait 100000
        grow g 1:m
        lose g INFRA task=1
        wait 100000
        grow g 1:m
        lose g INFRA task=1
        wait 100000
        grow g 1:m
        lose g INFRA task=1
        wait 100000
        missing g none
        expect g RUNNING
    """,
    "a failed task comes back while the job has retries": """
        gang g tasks=3 least=1 policy=continue retries=1
        place g n n m
        run g
        exit g 3 task=1
        missing g none wake=1000
        wait 1000
        missing g 1
        grow g 1:n
        run g
        exit g 3 task=2
        wait 100000
        missing g none
        exit g 0
        expect g FAILED EXIT_CODE
    """,
    "what another try cannot mend is not tried again": """
        gang g tasks=3 least=1 policy=continue retries=5
        place g n n m
        run g
        lose g TIME_LIMIT task=1
        wait 100000
        missing g none
    """,
    "a gang that started small grows by the tasks that were never placed": """
        gang g tasks=4 least=2
        place g n m
        expect g STARTING
        missing g 2,3
        run g
        grow g 2:n
        expect g RUNNING
        missing g 3
        run g
        exit g 0
        expect g SUCCEEDED
    """,
    "until its first task has succeeded": """
        gang g tasks=4 least=1
        place g n m
        run g
        exit g 0 task=0
        missing g none
        exit g 0
        expect g SUCCEEDED
    """,
    "though what it has lost it may place again": """
        gang g tasks=4 least=1 policy=continue
        place g n m
        run g
        exit g 0 task=0
        lose g INFRA task=1
        expect g QUEUED
        place g n n m
        run g
        exit g 0 task=0
        lose g INFRA task=1
        wait 100000
        missing g 1
    """,
    "one whose task has failed by itself does not grow": """
        gang g tasks=4 least=2
        place g n m
        run g
        exit g 1 task=0
        missing g none
        stopped g
        expect g FAILED
    """,
    "a gang whose first task is over before the others begin runs all the same": """
        gang g tasks=3
        place g n n m
        exit g 0 task=0
        expect g STARTING
        run g
        expect g RUNNING
        exit g 0
        expect g SUCCEEDED
    """,
    "a task lost at the start does not keep the others from running": """
        gang g tasks=3 least=2 policy=continue
        place g n n m
        lose g NOT_STARTED task=2
        expect g STARTING
        run g
        expect g RUNNING
    """,
    "who makes way is queued again, at no cost to its retries": """
        gang g tasks=3 retries=1
        place g n n m
        run g
        preempt g
        stops g 0,1,2
        missing g none
        stopped g
        expect g QUEUED
        count g preempted 1
        count g retries 0
        count g infra 0
        place g n n m
        expect g STARTING
    """,
    "or cancelled, if it asked for that": """
        gang g tasks=2 preempt=cancel
        place g n m
        run g
        preempt g
        stopped g
        expect g CANCELLED PREEMPTED
        code g 143
    """,
    "or suspended, where it could not be": """
        gang g tasks=2 preempt=suspend
        place g n m
        run g
        preempt g
        stopped g
        expect g QUEUED
    """,
    "what ends with 0 within its grace has succeeded": """
        gang g tasks=2 preempt=cancel
        place g n m
        run g
        preempt g
        obey g 0
        expect g SUCCEEDED
        code g 0
    """,
    "if all of it does": """
        gang g tasks=2
        place g n m
        run g
        preempt g
        obey g 0 task=1
        obey g 1 task=0
        expect g QUEUED
        count g preempted 1
    """,
    "what is lost while it makes way has made way": """
        gang g tasks=2
        place g n m
        run g
        preempt g
        lose g NODE_REBOOTED task=0
        obey g 143 task=1
        expect g QUEUED
        count g preempted 1
        count g infra 0
    """,
    "what had failed by itself before it heard of it has failed": """
        gang g tasks=2
        place g n m
        run g
        preempt g
        exit g 5 task=1
        stopped g
        expect g FAILED EXIT_CODE
        code g 5
    """,
    "a gang that goes on without a task makes way as a whole": """
        gang g tasks=3 least=1 policy=continue
        place g n n m
        run g
        lose g INFRA task=0
        preempt g
        stopped g
        expect g QUEUED
        count g preempted 1
        count g infra 0
    """,
    "a cancel wins over everything": """
        gang g tasks=3 least=1 policy=continue
        place g n n m
        run g
        exit g 1 task=0
        cancel g
        stopped g
        expect g CANCELLED
    """,
}


@pytest.mark.parametrize("case", CASES)
def test_gang(case: str) -> None:
    GangScenario().run(CASES[case])


@pytest.fixture
def cluster() -> Cluster:
    found = Cluster()
    for node in ("a", "b", "c", "d"):
        found.node(node, 0, address=f"10.0.0.{ord(node) - 96}")
    return found


def starts(cluster: Cluster, event: AttemptsAllocated) -> list[StartOrder]:
    orders = orders_for(cluster.journal[-1], cluster.state)
    assert cluster.journal[-1].event == event
    assert all(isinstance(order, StartOrder) for order in orders)
    return orders  # type: ignore[return-value]


# -- ranks


def test_each_task_is_told_its_rank_in_all_and_on_its_node(cluster: Cluster) -> None:
    job = submit_gang(cluster, tasks=6)
    orders = starts(cluster, place(cluster, job, dict(enumerate("bbabca")), port=29_777))
    told = [order.gang for order in orders]
    assert [(p.rank, p.local_rank, p.local_world_size, p.node_rank) for p in told if p] == [
        (0, 0, 3, 0),
        (1, 1, 3, 0),
        (2, 0, 2, 1),
        (3, 2, 3, 0),
        (4, 0, 1, 2),
        (5, 1, 2, 1),
    ]
    assert {(p.master_addr, p.master_port, p.world_size, p.nodes) for p in told if p} == {("10.0.0.2", 29_777, 6, 3)}
    assert {order.task_count for order in orders} == {6}


def test_what_joins_later_counts_those_before_it_and_is_all_that_is_started(cluster: Cluster) -> None:
    job = submit_gang(cluster, tasks=6, min_tasks=3)
    place(cluster, job, {0: "a", 1: "a", 2: "b"}, port=29_777)
    cluster.run(job)
    orders = starts(cluster, place(cluster, job, {3: "b", 4: "c"}, grow=True))
    assert [(o.attempt.task, o.task_count, o.gang and o.gang.rank) for o in orders] == [(3, 5, 3), (4, 5, 4)]
    assert {o.gang and o.gang.master_port for o in orders} == {29_777}
    assert (job.current()[0].number, job.current()[-1].number) == (1, 2)


def test_a_replaced_task_has_its_old_rank(cluster: Cluster) -> None:
    job = submit_gang(cluster, tasks=3, min_tasks=2, on_task_failure=OnTaskFailure.CONTINUE)
    place(cluster, job, {0: "a", 1: "b", 2: "c"}, port=29_777)
    cluster.run(job)
    cluster.report(job.current()[1], AttemptState.FAILED, "INFRA", detail="lost")
    (order,) = starts(cluster, place(cluster, job, {1: "d"}, grow=True))
    assert order.gang is not None
    assert (order.gang.rank, order.gang.world_size, order.gang.master_addr) == (1, 3, "10.0.0.1")


def test_an_order_that_is_sent_again_says_the_same_although_the_gang_has_grown_since(cluster: Cluster) -> None:
    job = submit_gang(cluster, tasks=4, min_tasks=2)
    first = starts(cluster, place(cluster, job, {0: "a", 1: "b"}, port=29_777))
    place(cluster, job, {2: "b", 3: "c"}, grow=True)
    again = orders_after_sync(cluster.state, cluster.state.nodes["b"], ())
    assert again[0] == first[1]


def test_a_job_of_one_task_has_no_rank_and_keeps_what_its_submitters_environment_says(cluster: Cluster) -> None:
    env = {"captured_env": {"RANK": "7", "A": "1"}, "env": {"MASTER_PORT": "1"}}
    single, gang = submit_gang(cluster, tasks=1, **env), submit_gang(cluster, tasks=2, **env)
    (order,) = starts(cluster, place(cluster, single, {0: "a"}))
    assert order.gang is None
    message = convert_nodes.order_message(order, 1).start_attempt
    assert not message.HasField("gang")
    assert dict(message.env) == {"RANK": "7", "A": "1", "MASTER_PORT": "1"}
    first, _ = starts(cluster, place(cluster, gang, {0: "a", 1: "b"}, port=29_777))
    message = convert_nodes.order_message(first, 1).start_attempt
    assert dict(message.env) == {"A": "1", "MASTER_PORT": "1"}
    assert (message.gang.master_addr, message.gang.world_size, message.task_count) == ("10.0.0.1", 2, 2)


def test_a_node_that_does_not_say_where_it_is_is_found_by_its_name(cluster: Cluster) -> None:
    cluster.node("quiet", 0)
    job = submit_gang(cluster, tasks=2)
    place(cluster, job, {0: "quiet", 1: "a"}, port=29_777)
    found = place_of(cluster.state, job, job.current()[1])
    assert found is not None
    assert found.master_addr == "quiet"


# -- ports


def test_no_two_gangs_meet_at_one_port_of_one_host(cluster: Cluster) -> None:
    cluster.node("a2", 0, address="10.0.0.1")
    for node in ("a", "a2", "a", "a2"):
        job = submit_gang(cluster, tasks=2)
        place(cluster, job, {0: node, 1: "b"}, port=gang_port(cluster.state, node, PORTS))
    ports = [job.master_port for job in cluster.state.jobs.values()]
    assert len(set(ports)) == 4
    assert all(port in PORTS for port in ports)


def test_a_port_that_the_same_pass_has_given_out_is_not_given_again(cluster: Cluster) -> None:
    taken: set[int] = set()
    for _ in PORTS:
        taken.add(gang_port(cluster.state, "a", PORTS, taken))
    assert len(taken) == len(PORTS)
    assert gang_port(cluster.state, "a", PORTS, taken) == 0
    assert gang_port(cluster.state, "b", PORTS) != 0


def test_a_gang_that_starts_again_at_its_old_place_meets_at_another_port(cluster: Cluster) -> None:
    job = submit_gang(cluster, tasks=2, max_retries=1)
    place(cluster, job, {0: "a", 1: "b"}, port=gang_port(cluster.state, "a", PORTS))
    before = job.master_port
    cluster.finish(job, 1)
    assert job.state is JobState.QUEUED
    assert gang_port(cluster.state, "a", PORTS) != before


# -- anything may happen

WORD = st.tuples(st.sampled_from(["run", "ok", "fail", "lose", "grow", "preempt", "obey", "again"]), st.integers(0, 3))


@settings(max_examples=150, deadline=None)
@given(
    words=st.lists(WORD, max_size=40),
    least=st.integers(0, 4),
    policy=st.sampled_from(list(OnTaskFailure)),
    mode=st.sampled_from(list(PreemptionMode)),
    retries=st.integers(0, 2),
)
def test_whatever_its_tasks_do_a_gang_is_consistent_and_comes_to_an_end(
    words: list[tuple[str, int]], least: int, policy: OnTaskFailure, mode: PreemptionMode, retries: int
) -> None:
    cluster = Cluster()
    cluster.node("n", 0)
    job = submit_gang(cluster, tasks=4, min_tasks=least, on_task_failure=policy, preemption=mode, max_retries=retries)
    for word, task in words:
        _happen(cluster, job, word, task)
    for _ in range(200):
        # From here on every task obeys at once, and otherwise ends well.
        if job.is_ended:
            break
        if job.state is JobState.QUEUED:
            place(cluster, job, dict.fromkeys(range(job.spec.least_tasks), "n"))
        for attempt in job.live():
            _happen(cluster, job, "obey" if attempt.desired_stop else "ok", attempt.task)
    assert job.is_ended
    good = all(a.state is AttemptState.SUCCEEDED for a in job.current())
    assert (job.state is JobState.SUCCEEDED) == (good and len(job.current()) >= job.spec.least_tasks)
    assert cluster.replayed().encode() == cluster.state.encode()


def _happen(cluster: Cluster, job: Job, word: str, task: int) -> None:
    """One word of the agents or of a pass, where it can be said now."""
    cluster.tick(500)
    live = {a.task: a for a in job.live()}
    attempt = live.get(task)
    if word == "again" and job.state is JobState.QUEUED:
        place(cluster, job, dict.fromkeys(range(max(job.spec.least_tasks, task + 1)), "n"))
    elif word == "grow" and (missing := missing_tasks(job, cluster.now_ms, cluster.settings).tasks):
        place(cluster, job, dict.fromkeys(missing[: task + 1], "n"), grow=True)
    elif word == "preempt" and job.live():
        stops = [
            AttemptStopRequested(a.id, Reason.PREEMPTED, "", CLAIMANT) for a in live.values() if not a.desired_stop
        ]
        cluster.apply(list(stops))
    elif attempt is not None and word in _REPORTS:
        state, reason, code = _REPORTS[word]
        if word != "obey":
            cluster.report(attempt, state, reason, exit_code=code)
        elif attempt.desired_stop:
            cluster.report(attempt, state, str(attempt.stop_reason), signal=15)


_REPORTS = {
    "run": (AttemptState.RUNNING, "", None),
    "ok": (AttemptState.SUCCEEDED, "COMPLETED", 0),
    "fail": (AttemptState.FAILED, "EXIT_CODE", 1),
    "lose": (AttemptState.FAILED, "INFRA", None),
    "obey": (AttemptState.STOPPED, "", None),
}


def test_an_entry_of_an_old_journal_knows_neither_growth_nor_ports() -> None:
    old = msgspec.json.decode(
        b'{"type":"AttemptsAllocated","job":"vision/1","round":1,"slices":[]}', type=AttemptsAllocated
    )
    assert (old.grow, old.master_port) == (False, 0)
