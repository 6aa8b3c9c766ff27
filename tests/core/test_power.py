"""Nodes that sleep while nobody needs them, as text cases on the real core: after which time, which stay awake, and
which are woken for the jobs that wait. After each pass a second one finds nothing left to do."""

from __future__ import annotations

import pytest
from cluster import Cluster
from scenario import Scenario

from gpushare.core import power
from gpushare.core.commands import CoreSettings, RawResources, ReportPower, UpdateTenant
from gpushare.core.cycle import schedule
from gpushare.core.events import CapacityHeld, Event, NodePowerRequested, ReservationCreated
from gpushare.core.kinds import Power
from gpushare.core.model import Slice, TenantSettings
from gpushare.core.promises import CapacityHold, Reservation

IDLE_MS = 60_000
WAKE_MS = 600_000


class Night(Scenario):
    """More statements; times in ms. `sleep` lets the named idle nodes fall asleep and go.

    idle MS   keep K   sleep N...   boot N   resync N   failed N down|waking   power N STATE   detail N [WORD]   next MS
    reserve NAME N [from=MS] [to=MS] [tenant=T]    tenant_cap T K
    """

    def __init__(self) -> None:
        super().__init__()
        self.boots = 1
        self.cluster.settings = CoreSettings(power_idle_ms=IDLE_MS, power_wake_timeout_ms=WAKE_MS)

    def _cycle(self) -> None:
        self.cluster.cycle()
        self.cluster.apply(self._stage())  # type: ignore[arg-type]
        assert self._stage() == [], "a second look finds more to do"

    def _stage(self) -> list[Event]:
        state = self.cluster.state
        waiting = power.without_room(state, self.cluster.last_pass.waits, ())
        return power.stage(state, self.cluster.now_ms, self.cluster.settings, waiting)

    def _idle(self, ms: str) -> None:
        self._set(power_idle_ms=int(ms))

    def _keep(self, count: str) -> None:
        self._set(power_keep_nodes=int(count))

    def _set(self, **changes: int) -> None:
        known = {name: getattr(self.cluster.settings, name) for name in CoreSettings.__struct_fields__}
        self.cluster.settings = CoreSettings(**{**known, **changes})

    def _sleep(self, *nodes: str) -> None:
        for node in nodes:
            self.cluster.apply([NodePowerRequested(node=node, power=Power.DOWN)])
            self._disconnect(node)
            self._silent(node)

    def _boot(self, node: str) -> None:
        self.boots += 1
        self.cluster.sync(node, **self.inventory[node], boot_id=f"boot-{self.boots}")

    def _resync(self, node: str) -> None:
        self._back(node)

    def _failed(self, node: str, asked: str) -> None:
        self.cluster.must(ReportPower(node, Power(asked), f"no such host as {node}"))

    def _power(self, node: str, wanted: str) -> None:
        assert self.cluster.state.nodes[node].power == wanted, self.cluster.state.nodes[node].power

    def _detail(self, node: str, word: str = "") -> None:
        said = self.cluster.state.nodes[node].power_detail
        assert word in said if word else not said, said

    def _next(self, ms: str) -> None:
        found = power.next_due_ms(self.cluster.state, self.cluster.now_ms, self.cluster.settings)
        assert found == (None if ms == "none" else self.cluster.now_ms + int(ms)), (found or 0) - self.cluster.now_ms

    def _reserve(self, name: str, node: str, tenant: str = "", **times: str) -> None:
        start_ms, end_ms = (self.cluster.now_ms + int(times[word]) for word in ("from", "to"))
        state = self.cluster.state.nodes[node]
        window = Reservation(
            name=name,
            start_ms=start_ms,
            end_ms=end_ms,
            tenant=tenant,
            nodes=(node,),
            maintenance=not tenant,
            hosts=((node, state.cpu_milli, state.memory_mib),) if tenant else (),
        )
        self.cluster.apply([ReservationCreated(reservation=window)])

    def _tenant_cap(self, tenant: str, most: str) -> None:
        self.cluster.must(UpdateTenant(tenant=tenant, settings=TenantSettings(max_running_jobs=int(most))))


CASES = {
    "an idle node sleeps after its time, not before": """
        node n 1
        next 60000
        wait 59999
        cycle
        power n on
        next 1
        wait 1
        cycle
        power n down
        next none
    """,
    "never, unless the admin says so": """
        idle 0
        node n 1
        wait 100000000
        cycle
        power n on
        next none
    """,
    "the time counts from the end of the last job": """
        tenant t
        node n 1
        submit t a milli=500
        cycle
        run a
        wait 100000
        cycle
        power n on
        exit a 0
        wait 59999
        cycle
        power n on
        wait 1
        cycle
        power n down
    """,
    "some are kept awake, those that were busy last": """
        tenant t
        node n1 1
        node n2 1
        node n3 1
        keep 2
        submit t a gpus=1
        submit t b gpus=1
        cycle
        run a
        run b
        wait 1
        exit b 0
        wait 100
        exit a 0
        wait 60000
        cycle
        power n3 down
        power n1 on
        power n2 on
    """,
    "a node that does not take work is left alone": """
        node cordoned 1
        node away 1
        node silent 1
        cordon cordoned
        disconnect away
        silent silent
        wait 100000
        cycle
        power cordoned on
        power away on
        power silent on
    """,
    "not while a window is open or about to be": """
        node n 1
        node m 1
        reserve now n from=0 to=80000
        reserve soon m from=100000 to=130000
        wait 60000
        cycle
        power n on
        power m on
        next 20000
        wait 20000
        cycle
        power n down
        power m on
    """,
    "one that just falls asleep takes nothing, and is woken again": """
        tenant t
        node n 1
        wait 60000
        cycle
        power n down
        submit t a milli=500
        cycle
        expect a QUEUED NODES_UNAVAILABLE
        power n waking
    """,
    "a job that needs it wakes a node, which then runs it": """
        tenant t
        node n 1
        sleep n
        submit t a milli=500
        cycle
        power n waking
        next 600000
        boot n
        power n on
        cycle
        expect a STARTING
        run a
        exit a 0
        wait 60000
        cycle
        power n down
    """,
    "only a node that has the job's directory is woken for it": """
        tenant t
        node n1 1
        node n2 1 shared=/home
        sleep n1 n2
        submit t a milli=500 dir=/home/ada
        cycle
        power n1 down
        power n2 waking
    """,
    "whoever was woken and is not needed any more sleeps after its time": """
        tenant t
        node n 1
        wait 1000000
        sleep n
        submit t a milli=500
        cycle
        cancel a
        boot n
        cycle
        power n on
        wait 60000
        cycle
        power n down
    """,
    "the fewest nodes, and one that is no larger than needed": """
        tenant t
        node n1 2
        node n2 4
        node n3 2
        node n4 8
        sleep n1 n2 n3 n4
        submit t gang tasks=10 gpus=1
        cycle
        power n4 waking
        power n3 waking
        power n1 down
        power n2 down
    """,
    "jobs share what is on its way": """
        tenant t
        node n1 1
        node n2 1
        sleep n1 n2
        submit t a milli=500
        submit t b milli=250
        cycle
        power n1 waking
        power n2 down
        submit t c milli=250
        cycle
        power n2 down
        submit t d milli=250
        cycle
        power n2 waking
    """,
    "equal jobs of one line wake what they need together": """
        tenant t
        node n1 1
        node n2 1
        node n3 1
        sleep n1 n2 n3
        submit t a count=4 milli=500
        cycle
        power n1 waking
        power n2 waking
        power n3 down
    """,
    "not for what it does not have": """
        tenant t
        node n 1 mib=24000
        node busy 1
        sleep n
        submit t first gpus=1
        cycle
        expect first STARTING
        submit t large mib=40000
        cycle
        power n down
        submit t small mib=20000
        cycle
        power n waking
    """,
    "not for a job that its tenant's limit stops": """
        tenant t limit=1000
        tenant u
        node n 1
        node busy 1
        sleep n
        submit t a gpus=1
        cycle
        submit t b milli=1
        cycle
        expect b QUEUED
        power n down
        submit u c milli=1
        cycle
        power n waking
    """,
    "no more nodes than the limit leaves jobs": """
        tenant t limit=1500
        node n1 1
        node n2 1
        node n3 1
        sleep n1 n2 n3
        submit t a count=3 milli=1000
        cycle
        power n1 waking
        power n2 down
        power n3 down
    """,
    "no more nodes than the cap leaves jobs": """
        tenant t
        tenant_cap t 2
        node n1 1
        node n2 1
        node n3 1
        sleep n1 n2 n3
        submit t a count=3 gpus=1
        cycle
        power n1 waking
        power n2 waking
        power n3 down
    """,
    "a gang counts on what is free elsewhere": """
        tenant t
        node awake 4
        node n1 2
        node n2 2
        sleep n1 n2
        submit t one gpus=2
        cycle
        submit t gang tasks=4 gpus=1
        cycle
        power n1 down
        power n2 waking
    """,
    "a gang that could not start with all of them wakes none, and lets them sleep": """
        tenant t
        node big 4
        node n1 2
        submit t block gpus=4
        cycle
        run block
        submit t gang tasks=6 gpus=1
        wait 60000
        cycle
        power n1 down
        cycle
        power n1 down
        exit block 0
        cycle
        power n1 waking
        power big on
    """,
    "a node that a gang waits to use does not go to sleep": """
        tenant t
        node n1 2
        node n2 2
        sleep n2
        submit t gang tasks=4 gpus=1
        wait 60000
        cycle
        power n1 on
        power n2 waking
    """,
    "not for a job that would run into another's window": """
        tenant t
        tenant u
        node n 1
        reserve theirs n from=1000000 to=2000000 tenant=u
        sleep n
        submit t long milli=500
        submit t longer milli=500 limit_ms=1000001
        cycle
        power n down
        submit t short milli=500 limit_ms=1000
        cycle
        power n waking
    """,
    "a window's own tenant wakes its nodes": """
        tenant t
        node n 1
        reserve mine n from=-1000 to=2000000 tenant=t
        sleep n
        submit t a milli=500
        cycle
        power n waking
    """,
    "one that does not come back is tried again after the same time, others before it": """
        tenant t
        node n1 1
        node n2 1
        sleep n1 n2
        submit t a milli=500
        cycle
        power n1 waking
        wait 599999
        cycle
        power n1 waking
        wait 1
        cycle
        power n1 down
        detail n1 come
        power n2 waking
        wait 600000
        cycle
        power n2 down
        power n1 waking
    """,
    "a hook that cannot put it to sleep leaves it in use": """
        tenant t
        node n 1
        wait 60000
        cycle
        failed n down
        power n on
        detail n host
        cycle
        power n on
        submit t a milli=500
        cycle
        expect a STARTING
        run a
        exit a 0
        wait 599999
        cycle
        power n on
        wait 1
        cycle
        power n down
        detail n
    """,
    "a hook that cannot wake it is run again later": """
        tenant t
        node n 1
        sleep n
        submit t a milli=500
        cycle
        failed n waking
        power n down
        next 600000
        wait 599999
        cycle
        power n down
        wait 1
        cycle
        power n waking
    """,
    "what was said of a request that is over changes nothing": """
        tenant t
        node n 1
        sleep n
        failed n waking
        detail n
        boot n
        failed n down
        failed n on
        power n on
        detail n
    """,
    "an agent that has not gone yet does not make its node usable": """
        tenant t
        node n 1
        wait 60000
        cycle
        disconnect n
        resync n
        power n down
        submit t a milli=500
        cycle
        power n waking
        resync n
        cycle
        expect a STARTING
    """,
    "one that the admin switched on is awake for its time": """
        node n 1
        wait 1000000
        sleep n
        wait 1000000
        boot n
        power n on
        wait 59999
        cycle
        power n on
        wait 1
        cycle
        power n down
    """,
    "a cordoned one is not woken": """
        tenant t
        node n 1
        sleep n
        cordon n
        submit t a milli=500
        cycle
        power n down
        uncordon n
        cycle
        power n waking
    """,
}


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    Night().run(CASES[name])


def test_a_node_on_which_room_is_held_for_a_job_stays_awake() -> None:
    cluster = Cluster(settings=CoreSettings(power_idle_ms=IDLE_MS))
    for name in ("n1", "n2"):
        cluster.node(name, 1)
    job = cluster.submit(resources=RawResources(gpus=1))[0]
    hold = CapacityHold(job.key, (Slice(task=0, node="n1", cpu_milli=1),), victims=(), since_ms=cluster.now_ms)
    cluster.apply([CapacityHeld(hold=hold)])
    cluster.tick(IDLE_MS)
    assert power.due_to_sleep(cluster.state, cluster.now_ms, cluster.settings) == ("n2",)


def test_what_the_pass_has_just_given_away_neither_sleeps_nor_counts_for_a_gang() -> None:
    cluster = Cluster(settings=CoreSettings(power_idle_ms=IDLE_MS))
    cluster.node("n1", 2)
    cluster.node("n2", 2)
    cluster.apply([NodePowerRequested(node="n2", power=Power.DOWN)])
    cluster.tick(IDLE_MS)
    cluster.submit(resources=RawResources(gpus=2))
    gang = cluster.submit(resources=RawResources(gpus=1), tasks=4)[0]
    decided = schedule(cluster.state, cluster.now_ms, cluster.settings).events
    decided = [event for event in decided if not isinstance(event, NodePowerRequested)]
    assert [type(e).__name__ for e in decided] == ["AttemptsAllocated"]
    assert power.stage(cluster.state, cluster.now_ms, cluster.settings, [gang], decided) == []


def test_many_sleeping_nodes_and_many_waiting_jobs_are_judged_in_one_look() -> None:
    """Every job of the look wakes its own node, and no node is woken twice."""
    cluster = Cluster()
    for k in range(40):
        cluster.node(f"n{k:02}", 1)
    cluster.apply([NodePowerRequested(node=name, power=Power.DOWN) for name in cluster.state.nodes])
    jobs = cluster.submit(count=30, resources=RawResources(gpus=1))
    woken = power.to_wake(cluster.state, jobs, cluster.now_ms, cluster.settings)
    assert woken == tuple(f"n{k:02}" for k in range(30))
