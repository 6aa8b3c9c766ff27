"""Leases: silence is counted on the boot-time clock, and never against a node for our own pauses."""

from __future__ import annotations

from gpushare.scheduler.leases import LATE_LOOK_MS, Leases, Overdue, Silence, boot_time_ms

TTL_MS = 15_000
EXPIRED = Overdue("n1", Silence.EXPIRED)
LAPSED = Overdue("n1", Silence.LAPSED)


class Clock:
    def __init__(self) -> None:
        self.ms = 1_000_000

    def __call__(self) -> int:
        return self.ms


def pass_time(clock: Clock, leases: Leases, ms: int) -> list[Overdue]:
    """What has become due in that time, looked at every half second; nothing is done about it."""
    due: list[Overdue] = []
    for _ in range(0, ms, 500):
        clock.ms += 500
        due += [each for each in leases.look(["n1"]) if each not in due]
    return due


def test_a_renewed_lease_never_ends() -> None:
    clock = Clock()
    leases = Leases(TTL_MS, 0, clock)
    for _ in range(100):
        leases.heard("n1")
        assert pass_time(clock, leases, TTL_MS) == []


def test_a_silent_node_expires_after_the_ttl_and_lapses_when_its_tasks_have_surely_stopped() -> None:
    clock = Clock()
    leases = Leases(TTL_MS, 0, clock)
    leases.heard("n1")
    assert pass_time(clock, leases, TTL_MS) == []
    assert pass_time(clock, leases, 1_000) == [EXPIRED]
    leases.done(EXPIRED)
    assert pass_time(clock, leases, 4_000) == []
    assert leases.silent_ms("n1") == 20_000
    assert pass_time(clock, leases, 500) == [LAPSED]
    leases.done(LAPSED)
    assert pass_time(clock, leases, 100_000) == []


def test_a_node_that_comes_back_may_fall_silent_again() -> None:
    clock = Clock()
    leases = Leases(TTL_MS, 0, clock)
    pass_time(clock, leases, 60_000)
    leases.done(EXPIRED)
    leases.done(LAPSED)
    leases.heard("n1")
    assert pass_time(clock, leases, 15_000) == []
    assert pass_time(clock, leases, 60_000) == [EXPIRED, LAPSED]


def test_what_could_not_be_done_is_due_again() -> None:
    clock = Clock()
    leases = Leases(TTL_MS, 0, clock)
    pass_time(clock, leases, 16_000)
    assert leases.look(["n1"]) == [EXPIRED]
    assert leases.look(["n1"]) == [EXPIRED]


def test_after_a_start_nobody_is_silent_before_the_grace() -> None:
    clock = Clock()
    leases = Leases(TTL_MS, 30_000, clock)
    assert pass_time(clock, leases, 30_000) == []
    assert pass_time(clock, leases, 1_000) == [EXPIRED]
    leases.restart()
    assert pass_time(clock, leases, 30_000) == []


def test_a_pause_of_the_scheduler_itself_is_given_back() -> None:
    clock = Clock()
    leases = Leases(TTL_MS, 0, clock)
    leases.heard("n1")
    pass_time(clock, leases, 5_000)
    clock.ms += 3_600_000
    assert leases.look(["n1"]) == []
    assert pass_time(clock, leases, 10_000) == []
    assert pass_time(clock, leases, 1_000) == [EXPIRED]


def test_a_pause_is_never_counted_before_the_node_had_time_to_speak_again() -> None:
    clock = Clock()
    leases = Leases(TTL_MS, 0, clock)
    leases.heard("n1")
    for _ in range(20):
        clock.ms += LATE_LOOK_MS + 1
        assert leases.look(["n1"]) == []


def test_the_clock_is_the_boot_time_clock() -> None:
    with open("/proc/uptime") as file:
        uptime_ms = float(file.read().split()[0]) * 1000
    assert abs(boot_time_ms() - uptime_ms) < 5_000
