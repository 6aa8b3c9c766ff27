"""What snapshots mean for placement: one bad reading means nothing, a driver in trouble accuses no job."""

from __future__ import annotations

from typing import Any

import pytest

from gpushare.core.kinds import GpuState
from gpushare.core.model import GpuCondition
from gpushare.reasons import Reason
from gpushare_agent.gpus.port import DriverState, GpuInfo, GpuProcess, GpuSample, GpuSnapshot
from gpushare_agent.health import DOUBT_FIRST_S, DOUBT_MAX_S, LEAK_AFTER_NS, Assessor, FenceDoubts
from gpushare_agent.sharing.watchdog import CardUse, WatchSettings, card_use

CARDS = ("GPU-a", "GPU-b")
S = 1_000_000_000


def snapshot(at_s: float = 0, infos: dict[str, dict[str, Any]] | None = None, **samples: dict[str, Any]) -> GpuSnapshot:
    """Cards GPU-a and GPU-b; keyword a or b overrides that sample's fields, `infos` those of the cards."""
    return GpuSnapshot(
        state=DriverState.OK,
        taken_boot_ns=int(at_s * S),
        infos=tuple(
            GpuInfo(
                **{
                    "uuid": uuid, "index": i, "minor": i, "model": "M", "total_mib": 80_000, "reserved_mib": 500,
                    **(infos or {}).get(uuid, {}),
                }
            )
            for i, uuid in enumerate(CARDS)
        ),
        samples=tuple(
            GpuSample(**{"uuid": uuid, "free_mib": 79_000, "used_mib": 500, **samples.get(uuid[-1], {})})
            for uuid in CARDS
        ),
    )  # fmt: skip


def trouble(state: DriverState) -> GpuSnapshot:
    return GpuSnapshot(state=state, detail=f"driver: {state}")


class Judge:
    """An assessor with the arguments that a test does not care about."""

    def __init__(self) -> None:
        self.assessor = Assessor()

    def __call__(
        self,
        seen: GpuSnapshot,
        held: tuple[str, ...] = (),
        stuck: dict[str, str] | None = None,
        doubts: dict[str, str] | None = None,
    ) -> dict[str, GpuCondition]:
        uses = {s.uuid: card_use(s, {}, (), WatchSettings(stranger_mib=32)) for s in seen.samples if not s.error}
        return self.assessor.assess(seen, CARDS, uses, held, stuck or {}, doubts or {})


@pytest.fixture
def judge() -> Judge:
    return Judge()


def test_cards_that_answer_are_healthy(judge: Judge) -> None:
    assert judge(snapshot()) == {uuid: GpuCondition(uuid) for uuid in CARDS}


def test_a_card_off_the_bus_is_lost_at_once_and_the_others_go_on(judge: Judge) -> None:
    found = judge(snapshot(a={"error": "fell off the bus", "lost": True}))
    assert (found["GPU-a"].state, found["GPU-a"].reason) == (GpuState.LOST, Reason.GPU_LOST)
    assert found["GPU-b"].state is GpuState.HEALTHY
    assert judge(snapshot())["GPU-a"].state is GpuState.HEALTHY


def test_a_card_that_stays_silent_is_taken_out_at_the_second_look(judge: Judge) -> None:
    judge(snapshot())
    silent = snapshot(a={"error": "timeout"})
    assert judge(silent)["GPU-a"].state is GpuState.HEALTHY
    found = judge(silent)["GPU-a"]
    assert (found.state, found.reason, found.detail) == (GpuState.DRAINED, Reason.GPU_UNHEALTHY, "timeout")
    assert judge(snapshot())["GPU-a"].state is GpuState.HEALTHY


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (DriverState.MISMATCH, Reason.DRIVER_MISMATCH),
        (DriverState.NO_DRIVER, Reason.DRIVER_MISSING),
        (DriverState.NO_LIBRARY, Reason.DRIVER_MISSING),
    ],
)
def test_a_driver_that_says_it_cannot_takes_all_cards_out_at_once(
    judge: Judge, state: DriverState, reason: Reason
) -> None:
    judge(snapshot())
    found = judge(trouble(state))
    assert {(c.state, c.reason) for c in found.values()} == {(GpuState.DRAINED, reason)}
    assert judge(snapshot()) == {uuid: GpuCondition(uuid) for uuid in CARDS}


def test_a_hang_counts_from_the_second_miss(judge: Judge) -> None:
    judge(snapshot())
    assert judge(trouble(DriverState.HUNG))["GPU-a"].state is GpuState.HEALTHY
    assert judge(trouble(DriverState.HUNG))["GPU-a"].reason == Reason.NVML_HUNG
    judge(snapshot())
    assert judge(trouble(DriverState.HUNG))["GPU-a"].state is GpuState.HEALTHY


def test_a_driver_that_has_never_answered_offers_nothing(judge: Judge) -> None:
    assert judge(trouble(DriverState.HUNG))["GPU-a"].reason == Reason.NVML_HUNG


def test_a_hang_that_lasts_is_told_once(judge: Judge) -> None:
    judge(snapshot())
    told = [judge(GpuSnapshot(state=DriverState.HUNG, detail=f"stuck for {n} s"))["GPU-a"] for n in range(5)]
    assert len({condition.detail for condition in told[1:]}) == 1


def test_a_lost_card_stays_lost_while_the_driver_is_silent(judge: Judge) -> None:
    judge(snapshot(a={"error": "gone", "lost": True}))
    found = [judge(trouble(DriverState.HUNG)) for _ in range(3)][-1]
    assert (found["GPU-a"].state, found["GPU-b"].reason) == (GpuState.LOST, Reason.NVML_HUNG)


class TestStrangers:
    def rows(self, *rows: GpuProcess) -> GpuSnapshot:
        return snapshot(a={"processes": rows, "used_mib": 5000})

    def test_a_stranger_is_named_when_it_is_there_twice(self, judge: Judge) -> None:
        seen = self.rows(GpuProcess(pid=7, memory_mib=4000, user="eve"))
        assert judge(seen)["GPU-a"].strangers == ()
        found = judge(seen)["GPU-a"]
        assert found.state is GpuState.HEALTHY
        assert [(s.pid, s.user, s.memory_mib) for s in found.strangers] == [(7, "eve", 4000)]
        assert judge(snapshot())["GPU-a"].strangers == ()

    def test_processes_that_come_and_go_are_never_named(self, judge: Judge) -> None:
        for pid in range(10, 20):
            assert judge(self.rows(GpuProcess(pid=pid, memory_mib=4000)))["GPU-a"].strangers == ()

    def test_a_display_is_no_stranger_and_neither_is_a_tiny_process(self, judge: Judge) -> None:
        seen = self.rows(
            GpuProcess(pid=7, memory_mib=4000, kind="graphics"), GpuProcess(pid=8, memory_mib=10, user="monitor")
        )
        assert [judge(seen) for _ in range(3)][-1]["GPU-a"].strangers == ()

    def test_what_the_driver_does_not_say_of_strangers_is_counted_once_in_all(self, judge: Judge) -> None:
        seen = self.rows(GpuProcess(pid=7, memory_mib=None), GpuProcess(pid=8, memory_mib=None))
        found = [judge(seen) for _ in range(2)][-1]["GPU-a"].strangers
        assert [s.memory_mib for s in found] == [5000, 0]


class TestOutOfOrder:
    @pytest.mark.parametrize("action", ["gpu_reset", "node_reboot", "drain_p2p", "drain_and_reset", "unknown"])
    def test_a_card_for_which_the_driver_asks_something_takes_no_work(self, judge: Judge, action: str) -> None:
        found = judge(snapshot(a={"recovery_action": action}))["GPU-a"]
        assert (found.state, found.reason) == (GpuState.DRAINED, Reason.GPU_UNHEALTHY)
        assert action.replace("_", " ") in found.detail

    @pytest.mark.parametrize("fields", [{"mig_enabled": True}, {"compute_mode": "prohibited"}])
    def test_a_card_in_a_mode_that_takes_no_program_says_so(self, judge: Judge, fields: dict[str, Any]) -> None:
        found = judge(snapshot(infos={"GPU-a": fields}))["GPU-a"]
        assert (found.state, found.reason) == (GpuState.DRAINED, Reason.FENCE_UNAVAILABLE)
        assert found.detail

    def test_a_card_with_a_process_that_cannot_be_killed_is_dirty(self, judge: Judge) -> None:
        found = judge(snapshot(), held=("GPU-a",), stuck={"GPU-a": "pid 5 still lives"})["GPU-a"]
        assert (found.state, found.detail) == (GpuState.DIRTY, "pid 5 still lives")

    def test_memory_that_nobody_holds_makes_a_card_dirty_after_a_while(self, judge: Judge) -> None:
        judge(snapshot(0))
        leak = {"used_mib": 9000}
        assert judge(snapshot(1, a=leak))["GPU-a"].state is GpuState.HEALTHY
        assert judge(snapshot(2 + LEAK_AFTER_NS / S, a=leak))["GPU-a"].state is GpuState.DIRTY
        assert judge(snapshot(30))["GPU-a"].state is GpuState.HEALTHY

    def test_memory_that_a_job_holds_is_no_leak(self, judge: Judge) -> None:
        judge(snapshot(0))
        for at_s in range(1, 60, 5):
            assert judge(snapshot(at_s, a={"used_mib": 9000}), held=("GPU-a",))["GPU-a"].state is GpuState.HEALTHY

    def test_a_busy_card_without_memory_or_process_is_not_occupied(self, judge: Judge) -> None:
        for at_s in range(0, 60, 5):
            assert judge(snapshot(at_s, a={"sm_percent": 100}))["GPU-a"] == GpuCondition("GPU-a")


def test_a_card_that_the_snapshot_does_not_hold_is_lost(judge: Judge) -> None:
    seen = GpuSnapshot(state=DriverState.OK, infos=(), samples=())
    assert {c.state for c in judge(seen).values()} == {GpuState.LOST}


def test_uses_of_unread_cards_are_no_strangers() -> None:
    found = Assessor().assess(snapshot(), CARDS, {"GPU-a": CardUse(uuid="GPU-a")}, (), {}, {})
    assert found["GPU-b"].strangers == ()


class TestFenceDoubts:
    def test_a_card_whose_server_refused_a_share_takes_none_for_a_while(self, judge: Judge) -> None:
        doubts = FenceDoubts()
        doubts.refused("GPU-a", "the daemon is gone", 100.0)
        found = judge(snapshot(), doubts=doubts.active(101.0))
        assert (found["GPU-a"].state, found["GPU-a"].reason) == (GpuState.DIRTY, Reason.MPS_UNHEALTHY)
        assert found["GPU-a"].detail == "the daemon is gone"
        assert found["GPU-b"].state is GpuState.HEALTHY
        assert judge(snapshot(), doubts=doubts.active(100.0 + DOUBT_FIRST_S))["GPU-a"].state is GpuState.HEALTHY

    def test_the_while_grows_with_each_refusal_up_to_a_bound_and_a_fence_that_stands_ends_it(self) -> None:
        doubts = FenceDoubts()
        now_s, pauses_s = 0.0, []
        for _ in range(8):
            doubts.refused("GPU-a", "x", now_s)
            doubts.refused("GPU-a", "x", now_s + 1)  # a second share that was on its way counts for nothing
            began_s = now_s
            while doubts.active(now_s):
                now_s += 1
            pauses_s.append(now_s - began_s)
        assert pauses_s[:3] == [30, 60, 120]
        assert pauses_s[-1] == DOUBT_MAX_S
        doubts.stood("GPU-a")
        doubts.refused("GPU-a", "x", now_s)
        assert not doubts.active(now_s + DOUBT_FIRST_S)
