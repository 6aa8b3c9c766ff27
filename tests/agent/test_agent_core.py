"""The agent's own ledger and decisions: nothing is given twice, nothing late is done, the first end counts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpushare.core.kinds import AttemptState, GpuState
from gpushare.reasons import Reason
from gpushare_agent.core import (
    FORGOTTEN_KEPT,
    AgentCore,
    Card,
    Effect,
    ForgetIt,
    Holding,
    Launch,
    PersistTerm,
    Refused,
    Release,
    Report,
    SealIt,
    StartOrder,
    StopRunning,
    Tell,
)
from gpushare_agent.launchspec import AttemptStatus

A, B = "GPU-a", "GPU-b"


def order(attempt_id: str = "vision.1.0.1", **fields: Any) -> StartOrder:
    settings: dict[str, Any] = {
        "attempt_id": attempt_id,
        "term": 1,
        "job_id": "1",
        "task_index": 0,
        "task_count": 1,
        "number": 1,
        "unix_user": "ann",
        "argv": ("true",),
        "script": b"",
        "env": {},
        "working_directory": "/",
        "grace_ms": 5000,
    }
    return StartOrder(**{**settings, **fields})


def share(attempt_id: str, milli: int, mib: int, uuid: str = A, **fields: Any) -> StartOrder:
    return order(attempt_id, gpu_uuids=(uuid,), gpu_milli=milli, gpu_memory_mib=mib, tier="timeslice", **fields)


def whole(attempt_id: str, *uuids: str) -> StartOrder:
    return order(attempt_id, gpu_uuids=uuids, whole=True, gpu_milli=1000, gpu_memory_mib=10_000, tier="exclusive")


def status(attempt_id: str, state: str, **fields: Any) -> AttemptStatus:
    return AttemptStatus(attempt_id=attempt_id, state=state, boot_id="b", **fields)  # type: ignore[arg-type]


def two_cards(usable_mib: int = 10_000) -> AgentCore:
    core = AgentCore()
    core.set_cards([Card(A, usable_mib), Card(B, usable_mib)])
    return core


def launched(effects: list[Effect]) -> bool:
    return any(isinstance(effect, Launch) for effect in effects)


def told(effects: list[Effect]) -> Report:
    (report,) = [effect.report for effect in effects if isinstance(effect, Tell)]
    return report


class TestOrders:
    def test_a_start_is_launched_once_and_its_repetition_is_answered_with_the_present_state(self) -> None:
        core = two_cards()
        first = core.start(share("j.1.0.1", 250, 2000))
        assert launched(first)
        core.observe(status("j.1.0.1", "RUNNING", started_ms=5))
        again = core.start(share("j.1.0.1", 250, 2000))
        assert not launched(again)
        assert told(again).state is AttemptState.RUNNING

    def test_a_new_term_is_durable_before_its_order_is_followed(self) -> None:
        effects = two_cards().start(share("j.1.0.1", 250, 2000, term=7))
        assert [type(effect) for effect in effects] == [PersistTerm, Launch]
        assert effects[0] == PersistTerm(7)

    @pytest.mark.parametrize("kind", ["start", "stop", "seal", "forget"])
    def test_an_order_of_an_older_term_does_nothing(self, kind: str) -> None:
        core = AgentCore(highest_term=5)
        core.set_cards([Card(A, 10_000)])
        core.start(share("j.1.0.1", 100, 100, term=5))
        act = {
            "start": lambda: core.start(share("j.2.0.1", 100, 100, term=4)),
            "stop": lambda: core.stop("j.1.0.1", 4, Reason.CANCELLED, 0),
            "seal": lambda: core.seal("j.1.0.1", 4),
            "forget": lambda: core.forget("j.1.0.1", 4),
        }[kind]
        (effect,) = act()
        assert isinstance(effect, Refused)
        assert effect.reason is Reason.STALE_TERM
        assert core.known() == {"j.1.0.1"}
        assert core.stop_wanted("j.1.0.1") is None

    def test_a_leader_of_an_older_term_is_not_followed_and_one_of_the_same_or_a_newer_is(self) -> None:
        core = AgentCore(highest_term=5)
        (refused,) = core.begin_term(4)
        assert isinstance(refused, Refused)
        assert core.begin_term(5) == []
        assert core.begin_term(6) == [PersistTerm(6)]

    def test_a_stop_before_its_start_leaves_a_tombstone(self) -> None:
        core = two_cards()
        assert core.stop("j.1.0.1", 1, Reason.CANCELLED, 1000)[-1] == SealIt("j.1.0.1")
        assert not launched(core.start(share("j.1.0.1", 250, 2000)))
        core.observe(status("j.1.0.1", "STOPPED", reason=Reason.NOT_STARTED))
        late = core.start(share("j.1.0.1", 250, 2000))
        assert not launched(late)
        assert (told(late).state, told(late).reason) == (AttemptState.STOPPED, Reason.NOT_STARTED)

    def test_a_stop_of_a_running_attempt_carries_its_reason_and_grace(self) -> None:
        core = two_cards()
        core.start(share("j.1.0.1", 250, 2000))
        core.observe(status("j.1.0.1", "RUNNING"))
        (effect,) = core.stop("j.1.0.1", 1, Reason.CANCELLED, 1234, "by ann")
        assert effect == StopRunning("j.1.0.1", Reason.CANCELLED, 1234, "by ann")
        assert core.stop_wanted("j.1.0.1") is Reason.CANCELLED

    def test_a_stop_of_an_ended_attempt_repeats_its_end(self) -> None:
        core = two_cards()
        core.start(share("j.1.0.1", 250, 2000))
        core.observe(status("j.1.0.1", "SUCCEEDED", exit_code=0))
        assert told(core.stop("j.1.0.1", 1, Reason.CANCELLED, 0)).state is AttemptState.SUCCEEDED

    def test_a_seal_ends_what_lives(self) -> None:
        core = two_cards()
        core.start(share("j.1.0.1", 250, 2000))
        core.observe(status("j.1.0.1", "RUNNING"))
        (effect,) = core.seal("j.1.0.1", 1)
        assert isinstance(effect, StopRunning)
        assert (effect.reason, effect.grace_ms) == (Reason.STALE, 5000)

    def test_a_live_attempt_is_not_forgotten_and_an_ended_one_is_remembered_until_then(self) -> None:
        core = two_cards()
        core.start(share("j.1.0.1", 250, 2000))
        (refused,) = core.forget("j.1.0.1", 1)
        assert isinstance(refused, Refused)
        core.observe(status("j.1.0.1", "FAILED", reason=Reason.EXIT_CODE, exit_code=3))
        assert [(r.attempt_id, r.exit_code) for r in core.reports()] == [("j.1.0.1", 3)]
        assert core.forget("j.1.0.1", 1) == [ForgetIt("j.1.0.1")]
        assert core.reports() == []
        assert core.forget("j.1.0.1", 1) == []

    @pytest.mark.parametrize("act", ["start", "stop"])
    def test_what_was_forgotten_never_comes_back(self, act: str) -> None:
        core = two_cards()
        core.start(share("j.1.0.1", 250, 2000))
        core.observe(status("j.1.0.1", "SUCCEEDED"))
        core.forget("j.1.0.1", 1)
        late = (
            core.start(share("j.1.0.1", 250, 2000)) if act == "start" else core.stop("j.1.0.1", 1, Reason.CANCELLED, 0)
        )
        assert [type(effect) for effect in late] == [Refused]
        assert core.known() == set()

    def test_the_memory_of_forgotten_attempts_is_bounded(self) -> None:
        core = two_cards()
        for number in range(FORGOTTEN_KEPT + 10):
            core.start(order(f"j.{number}.0.1"))
            core.observe(status(f"j.{number}.0.1", "SUCCEEDED"))
            core.forget(f"j.{number}.0.1", 1)
        assert not launched(core.start(order(f"j.{FORGOTTEN_KEPT + 9}.0.1")))
        assert launched(core.start(order("j.0.0.1")))


class TestLedger:
    def test_thousandths_of_one_card_add_up_to_a_thousand_and_not_one_more(self) -> None:
        core = two_cards()
        for number in range(3):
            assert launched(core.start(share(f"j.{number}.0.1", 333, 100)))
        assert launched(core.start(share("j.3.0.1", 1, 100)))
        report = told(core.start(share("j.4.0.1", 1, 100)))
        assert (report.state, report.reason) == (AttemptState.STOPPED, Reason.NOT_STARTED)
        assert "1001 of 1000 milli" in report.detail
        assert launched(core.start(share("j.5.0.1", 1, 100, uuid=B)))

    def test_memory_of_one_card_is_not_given_twice(self) -> None:
        core = two_cards(usable_mib=46_068)
        for number in range(23):
            assert launched(core.start(share(f"j.{number}.0.1", 1, 2000)))
        report = told(core.start(share("j.23.0.1", 1, 2000)))
        assert "48000 of 46068 MiB" in report.detail

    @pytest.mark.parametrize("first_whole", [True, False])
    def test_a_whole_card_has_one_attempt(self, first_whole: bool) -> None:
        core = two_cards()
        orders = [whole("j.1.0.1", A, B), share("j.2.0.1", 1, 1, uuid=B)]
        first, second = orders if first_whole else reversed(orders)
        assert launched(core.start(first))
        assert first.attempt_id in told(core.start(second)).detail

    @pytest.mark.parametrize(
        ("wanted", "said"),
        [
            (share("j.1.0.1", 1, 1, uuid="GPU-none"), "manages no card GPU-none"),
            (order("j.1.0.1", gpu_uuids=(A, B), gpu_milli=500, gpu_memory_mib=10), "a share is of one card"),
            (share("j.1.0.1", 1001, 1), "1001 of 1000"),
            (share("j.1.0.1", 1, 10_001), "10001 of 10000 MiB"),
        ],
    )
    def test_what_cannot_be_given_is_refused_with_the_figure(self, wanted: StartOrder, said: str) -> None:
        report = told(two_cards().start(wanted))
        assert report.reason is Reason.NOT_STARTED
        assert said in report.detail

    @pytest.mark.parametrize("state", [GpuState.LOST, GpuState.DRAINED, GpuState.DIRTY, GpuState.QUARANTINED])
    def test_nothing_starts_on_a_card_that_is_out_of_order(self, state: GpuState) -> None:
        core = AgentCore()
        core.set_cards([Card(A, 10_000, state)])
        assert str(state) in told(core.start(share("j.1.0.1", 1, 1))).detail

    def test_capacity_is_free_when_the_end_is_proven_and_not_before(self) -> None:
        core = two_cards()
        core.start(share("j.1.0.1", 1000, 10_000))
        core.observe(status("j.1.0.1", "RUNNING"))
        core.stop("j.1.0.1", 1, Reason.CANCELLED, 0)
        core.observe(status("j.1.0.1", "STOPPING", stuck=True))
        assert not launched(core.start(share("j.2.0.1", 1, 1)))
        core.observe(status("j.1.0.1", "STOPPED", reason=Reason.CANCELLED))
        assert launched(core.start(share("j.3.0.1", 1000, 10_000)))

    def test_a_restarted_agent_counts_what_it_adopts(self) -> None:
        core = two_cards()
        held = {
            "j.1.0.1": Holding(attempt_id="j.1.0.1", gpu_uuids=(A,), gpu_milli=800, gpu_memory_mib=10, tier="timeslice")
        }
        core.recover([status("j.1.0.1", "RUNNING"), status("j.2.0.1", "SUCCEEDED", exit_code=0)], held)
        assert not launched(core.start(share("j.3.0.1", 300, 10)))
        assert {r.attempt_id: r.state for r in core.reports()}["j.2.0.1"] is AttemptState.SUCCEEDED
        assert core.holding("j.1.0.1") == held["j.1.0.1"]

    def test_cpu_jobs_hold_no_card(self) -> None:
        core = AgentCore()
        assert launched(core.start(order("j.1.0.1")))
        core.check()

    @given(
        st.lists(
            st.tuples(st.integers(0, 9), st.sampled_from("ssssweof"), st.integers(1, 1000), st.integers(1, 12_000))
        )
    )
    def test_whatever_is_ordered_no_card_is_given_away_twice(self, steps: list[tuple[int, str, int, int]]) -> None:
        core = two_cards()
        for number, kind, milli, mib in steps:
            name = f"j.{number}.0.1"
            uuid = A if number % 2 else B
            match kind:
                case "s":
                    core.start(share(name, milli, mib, uuid=uuid))
                case "w":
                    core.start(whole(name, A, B) if milli % 2 else whole(name, uuid))
                case "e":
                    core.observe(status(name, "FAILED"))
                case "o":
                    core.stop(name, 1, Reason.CANCELLED, 0)
                case "f":
                    core.forget(name, 1)
            core.check()


class TestOvercommit:
    def test_shares_add_up_to_what_the_order_says_the_card_may_carry(self) -> None:
        core = two_cards()
        core.start(share("j.1.0.1", 800, 1000, capacity_milli=1500))
        assert not launched(core.start(share("j.2.0.1", 700, 1000)))
        assert launched(core.start(share("j.3.0.1", 700, 1000, capacity_milli=1500)))
        core.check()
        refused = told(core.start(share("j.4.0.1", 1, 1000, capacity_milli=1500)))
        assert "1501 of 1500 milli" in refused.detail

    def test_memory_is_never_overcommitted(self) -> None:
        core = two_cards(10_000)
        core.start(share("j.1.0.1", 800, 6000, capacity_milli=1500))
        assert not launched(core.start(share("j.2.0.1", 700, 6000, capacity_milli=1500)))


class TestEnds:
    def test_the_first_end_is_the_end(self) -> None:
        core = two_cards()
        core.start(share("j.1.0.1", 1, 1))
        effects = core.observe(status("j.1.0.1", "SUCCEEDED", exit_code=0))
        assert [type(effect) for effect in effects] == [Tell, Release]
        assert core.observe(status("j.1.0.1", "FAILED", reason=Reason.INFRA)) == []
        assert core.reports()[0].state is AttemptState.SUCCEEDED

    def test_a_repeated_observation_is_not_told_twice(self) -> None:
        core = two_cards()
        core.start(share("j.1.0.1", 1, 1))
        assert len(core.observe(status("j.1.0.1", "RUNNING", started_ms=1))) == 1
        assert core.observe(status("j.1.0.1", "RUNNING", started_ms=1)) == []

    def test_the_user_of_a_fenced_attempt_is_noted(self) -> None:
        core = two_cards()
        core.start(share("j.1.0.1", 1, 1))
        noted = core.fenced("j.1.0.1", 1000, (1000, 27))
        assert noted is not None
        assert (noted.tier, noted.uid, noted.gids) == ("timeslice", 1000, (1000, 27))

    @pytest.mark.parametrize(
        ("reason", "state", "said"),
        [
            (Reason.UNIX_USER_UNMAPPED, AttemptState.FAILED, Reason.UNIX_USER_UNMAPPED),
            (Reason.FENCE_FAILED, AttemptState.FAILED, Reason.FENCE_FAILED),
            (Reason.OCCUPIED, AttemptState.STOPPED, Reason.OCCUPIED),
            (Reason.NOT_STARTED, AttemptState.STOPPED, Reason.NOT_STARTED),
            (Reason.STALE_ATTEMPT, AttemptState.STOPPED, Reason.STALE),
        ],
    )
    def test_a_refused_launch_says_why_and_gives_the_slice_back(
        self, reason: Reason, state: AttemptState, said: Reason
    ) -> None:
        core = two_cards()
        core.start(share("j.1.0.1", 1000, 1))
        report = told(core.launch_refused("j.1.0.1", reason, "because"))
        assert (report.state, report.reason, report.detail) == (state, said, "because")
        assert launched(core.start(share("j.2.0.1", 1000, 1)))

    def test_the_watchdog_ends_an_attempt_once_as_its_own_failure(self) -> None:
        core = two_cards()
        core.start(share("j.1.0.1", 1, 100))
        core.observe(status("j.1.0.1", "RUNNING"))
        (effect,) = core.overran("j.1.0.1", Reason.MEMORY_LIMIT, "200 of 100 MiB", 2000)
        assert effect == StopRunning("j.1.0.1", Reason.MEMORY_LIMIT, 2000, "200 of 100 MiB", failed=True)
        assert core.overran("j.1.0.1", Reason.MEMORY_LIMIT, "201 of 100 MiB", 2000) == []

    def test_a_lost_card_ends_what_ran_on_it_and_nothing_else(self) -> None:
        core = two_cards()
        core.start(share("j.1.0.1", 1, 1, uuid=A))
        core.start(share("j.2.0.1", 1, 1, uuid=B))
        core.stop("j.1.0.1", 1, Reason.CANCELLED, 5)
        (effect,) = core.card_lost(A, "off the bus")
        assert isinstance(effect, StopRunning)
        assert (effect.attempt_id, effect.reason, effect.failed) == ("j.1.0.1", Reason.GPU_LOST, True)
        assert core.card_lost(A, "off the bus") == []
