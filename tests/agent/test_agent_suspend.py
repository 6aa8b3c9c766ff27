"""Suspension as the agent sees it: whose card it is meanwhile, and that a process on simulated cards is counted where
it was resumed. The ledger alone, and the whole agent with a fake scheduler."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from standins.agent_process import CARD, Scene, play
from standins.fake_scheduler import NODE
from test_agent_core import A, B, launched, share, status, told, two_cards, whole

from gpushare.core.kinds import AttemptState
from gpushare.reasons import Reason
from gpushare.v1 import agent_pb2, job_pb2
from gpushare_agent.core import AgentCore, Holding, Note, Refused, Release, Resume, ResumeOrder, Suspend
from gpushare_agent.gpus.catalogue import card_uuid

OTHER_CARD = card_uuid(NODE, 1)
SIMWORK = (sys.executable, "-m", "gpushare_agent.gpus.simwork")
ATTEMPT = "j.1.0.1"


def resume(uuid: str = A, term: int = 1, milli: int = 600) -> ResumeOrder:
    return ResumeOrder(
        attempt_id=ATTEMPT, term=term, gpu_uuids=(uuid,), whole=False, gpu_milli=milli, gpu_memory_mib=4000
    )


def suspended() -> AgentCore:
    core = two_cards()
    core.start(share(ATTEMPT, 600, 4000))
    core.observe(status(ATTEMPT, "RUNNING"))
    assert core.suspend(ATTEMPT, 1) == [Suspend(ATTEMPT)]
    effects = core.observe(status(ATTEMPT, "SUSPENDED"))
    assert [type(effect) for effect in effects[:2]] == [Note, Release]
    assert told(effects).state is AttemptState.SUSPENDED
    core.check()
    return core


class TestLedger:
    def test_a_suspended_attempt_leaves_its_card_to_others_and_is_still_alive(self) -> None:
        core = suspended()
        assert core.is_live(ATTEMPT)
        assert core.on_card(A) == []
        assert launched(core.start(whole("j.2.0.1", A)))
        core.check()

    def test_until_it_is_suspended_its_card_is_its_own(self) -> None:
        core = two_cards()
        core.start(share(ATTEMPT, 600, 4000))
        core.observe(status(ATTEMPT, "RUNNING"))
        core.suspend(ATTEMPT, 1)
        assert not launched(core.start(whole("j.2.0.1", A)))

    def test_it_goes_on_on_another_card_and_remembers_the_one_that_it_knows(self) -> None:
        core = suspended()
        core.start(whole("j.2.0.1", A))
        assert core.resume(resume(B)) == [Resume(ATTEMPT)]
        (held,) = core.on_card(B)
        assert (held.gpu_uuids, held.launch_uuids, held.suspended) == ((B,), (A,), False)
        core.observe(status(ATTEMPT, "RUNNING"))
        core.check()
        core.suspend(ATTEMPT, 1)
        core.observe(status(ATTEMPT, "SUSPENDED"))
        core.stop("j.2.0.1", 1, Reason.CANCELLED, 0)
        core.observe(status("j.2.0.1", "STOPPED", reason=Reason.CANCELLED))
        core.resume(resume(A))
        (held,) = core.on_card(A)
        assert held.launch_uuids == ()

    def test_it_is_not_resumed_on_a_card_that_another_holds(self) -> None:
        core = suspended()
        core.start(share("j.2.0.1", 500, 1000))
        (refused,) = core.resume(resume(A))
        assert isinstance(refused, Refused)
        assert refused.reason is Reason.OCCUPIED
        assert core.live()[0].suspended

    def test_a_repeated_resume_does_the_same_again(self) -> None:
        core = suspended()
        assert core.resume(resume(A)) == core.resume(resume(A)) == [Resume(ATTEMPT)]
        core.observe(status(ATTEMPT, "RUNNING"))
        assert told(core.resume(resume(A))).state is AttemptState.RUNNING
        core.check()

    def test_a_suspended_attempt_that_is_being_ended_neither_resumes_nor_takes_its_card_back(self) -> None:
        core = suspended()
        core.start(whole("j.2.0.1", A))
        core.stop(ATTEMPT, 1, Reason.CANCELLED, 1000)
        core.observe(status(ATTEMPT, "STOPPING"))
        assert core.on_card(A)[0].attempt_id == "j.2.0.1"
        assert isinstance(core.suspend(ATTEMPT, 1)[0], Refused)
        core.check()

    def test_a_lost_card_does_not_end_what_is_suspended(self) -> None:
        assert suspended().card_lost(A, "off the bus") == []

    def test_an_order_of_an_old_term_does_nothing(self) -> None:
        core = suspended()
        core.begin_term(5)
        assert all(isinstance(e, Refused) for e in (*core.suspend(ATTEMPT, 4), *core.resume(resume(A, term=4))))

    def test_a_restarted_agent_believes_the_shim_that_it_is_suspended(self) -> None:
        core = AgentCore()
        held = Holding(attempt_id=ATTEMPT, tier="timeslice", gpu_uuids=(A,), gpu_milli=600, gpu_memory_mib=4000)
        core.recover([status(ATTEMPT, "SUSPENDED")], {ATTEMPT: held})
        assert core.live()[0].suspended
        assert core.on_card(A) == []


# -- the whole agent


async def order_suspend(scene: Scene, attempt_id: str) -> None:
    await scene.scheduler.session.order(
        suspend_attempt=agent_pb2.SuspendAttempt(attempt_id=attempt_id, term=scene.scheduler.switches.term)
    )


async def order_resume(scene: Scene, attempt_id: str, uuid: str) -> None:
    message = agent_pb2.ResumeAttempt(
        attempt_id=attempt_id,
        term=scene.scheduler.switches.term,
        gpu_uuids=[uuid],
        gpu_milli=800,
        gpu_memory_mib=60_000,
        capacity_milli=1000,
    )
    await scene.scheduler.session.order(resume_attempt=message)


def used_mib(scene: Scene, uuid: str, since: int = 0) -> list[int]:
    """What the card was reported to have in use, in every report from that one on."""
    reports = [r for session in scene.scheduler.sessions for r in session.gpu_reports]
    return [r.samples[uuid].used_mib for r in reports[since:] if uuid in r.samples]


def reports(scene: Scene) -> int:
    return sum(len(session.gpu_reports) for session in scene.scheduler.sessions)


def test_two_jobs_take_turns_on_a_card_that_has_room_for_one(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        big = {"gpu_milli": 800, "gpu_memory_mib": 60_000}
        await scene.share("v.1.0.1", *SIMWORK, "--memory", "50G", "--seconds", "600", **big)
        await scene.scheduler.state("v.1.0.1", "RUNNING")
        await scene.scheduler.until(lambda: 51_200 in used_mib(scene, CARD))
        await order_suspend(scene, "v.1.0.1")
        await scene.scheduler.state("v.1.0.1", "SUSPENDED")
        await scene.share("v.2.0.1", *SIMWORK, "--memory", "40G", "--seconds", "600", **big)
        await scene.scheduler.state("v.2.0.1", "RUNNING")
        await scene.scheduler.until(lambda: used_mib(scene, CARD)[-1] == 40_960)
        # The first goes on beside it, on the other card, where its processes are counted from now on.
        await order_resume(scene, "v.1.0.1", OTHER_CARD)
        await scene.scheduler.state("v.1.0.1", "RUNNING")
        since = reports(scene)
        await scene.scheduler.until(lambda: len(used_mib(scene, CARD, since)) >= 2)
        assert used_mib(scene, CARD, since)[-1] == 40_960
        assert used_mib(scene, OTHER_CARD, since)[-1] == 51_200
        use = scene.scheduler.session.gpu_reports[-1].attempt_use
        assert {a: use[a].used_mib for a in use} == {"v.1.0.1": 51_200, "v.2.0.1": 40_960}
        for attempt in ("v.1.0.1", "v.2.0.1"):
            last = scene.scheduler.last_report(attempt)
            assert last is not None
            assert last.state == job_pb2.ATTEMPT_STATE_RUNNING

    play(tmp_path, act, watchdog_interval_ms=50)


def test_a_suspended_job_outlives_two_agents_and_says_so_each_time(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        go = tmp_path / "go"
        script = f"while [ ! -e {go} ]; do sleep 0.05; done; exit 7"
        await scene.share("v.1.0.1", "sh", "-c", script, gpu_milli=800, gpu_memory_mib=60_000)
        await scene.scheduler.state("v.1.0.1", "RUNNING")
        await order_suspend(scene, "v.1.0.1")
        await scene.scheduler.state("v.1.0.1", "SUSPENDED")
        go.touch()
        for number in (2, 3):
            await scene.agent.kill()
            await scene.agent.start()
            session = await scene.scheduler.synced(number)
            assert session.sync is not None
            (said,) = session.sync.attempts
            assert said.state == job_pb2.ATTEMPT_STATE_SUSPENDED
        await scene.share("v.2.0.1", "true", gpu_milli=900)
        await scene.scheduler.state("v.2.0.1", "SUCCEEDED")
        await order_resume(scene, "v.1.0.1", OTHER_CARD)
        assert (await scene.scheduler.state("v.1.0.1", "FAILED")).exit_code == 7

    play(tmp_path, act)


def test_a_suspended_job_that_is_stopped_hears_it(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        up = tmp_path / "up"
        await scene.share("v.1.0.1", "sh", "-c", f"trap 'exit 7' TERM; touch {up}; while :; do sleep 0.02; done")
        await scene.scheduler.state("v.1.0.1", "RUNNING")
        async with asyncio.timeout(10):
            while not os.path.exists(up):
                await asyncio.sleep(0.02)
        await order_suspend(scene, "v.1.0.1")
        await scene.scheduler.state("v.1.0.1", "SUSPENDED")
        await scene.stop("v.1.0.1", grace_ms=10_000, reason="PREEMPTED")
        end = await scene.scheduler.state("v.1.0.1", "STOPPED")
        assert (end.reason, end.exit_code) == ("PREEMPTED", 7)

    play(tmp_path, act)


def test_a_node_says_where_it_is_which_cards_are_near_and_that_its_jobs_can_be_suspended(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        sync = scene.scheduler.session.sync
        assert sync is not None
        assert sync.address == "127.0.0.1"
        assert [card.domain for card in sync.gpus] == ["numa0", "numa0", "numa1", "numa1"]
        offers = {tier.tier: tier.can_suspend for tier in sync.gpus[0].tiers}
        assert offers == {"exclusive": True, "timeslice": True, "mps-v2": False}

    play(tmp_path, act, simulate="4xL40S")


def test_the_admin_may_name_another_address(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        assert scene.scheduler.session.sync is not None
        assert scene.scheduler.session.sync.address == "gpu07.fabric"

    play(tmp_path, act, advertise_address="gpu07.fabric")
