"""The single writer: nothing leaves before it is durable, nothing that was not durable was ever true."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from cluster import raw_job, user_of

from gpushare.core.commands import Call, CancelJob, CoreSettings, CreateTenant, Outcome, RawResources, SubmitJobs
from gpushare.core.events import Entry
from gpushare.core.model import SYSTEM, TenantSettings
from gpushare.core.state import ClusterState
from gpushare.errors import GpushareError
from gpushare.reasons import Reason
from gpushare.scheduler.engine import Engine
from gpushare.store.memory import MemoryDisk, MemoryStore
from gpushare.store.port import StoreUnavailable

HELD_S = 0.3


class Clock:
    ms = 1_700_000_000_000

    def __call__(self) -> int:
        return self.ms


def engine_on(disk: MemoryDisk, clock: Clock | None = None, **options: Any) -> tuple[Engine, MemoryStore]:
    store = MemoryStore(disk)
    engine = Engine(store, CoreSettings(), wall_ms=clock or Clock(), holder="test", reload_backoff_s=0.01, **options)
    return engine, store


def submit(engine: Engine, request_id: str, body: str = "b", **fields: object) -> Awaitable[Any]:
    call = Call(user_of("vision"), request_id, "CreateJob", body)
    return engine.execute(SubmitJobs(tenant="vision", jobs=(raw_job(**fields),)), call)


async def ready(disk: MemoryDisk, **options: Any) -> tuple[Engine, MemoryStore]:
    engine, store = engine_on(disk, **options)
    await engine.start()
    if engine.state.tenant("vision") is None:
        await engine.execute(CreateTenant("vision", TenantSettings()), Call(SYSTEM))
    return engine, store


def run(test: Callable[[MemoryDisk], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(MemoryDisk()), 30))


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = asyncio.get_running_loop().time() + 10
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.005)


def test_no_answer_order_or_watch_event_leaves_while_the_append_is_held() -> None:
    async def test(disk: MemoryDisk) -> None:
        engine, store = await ready(disk)
        await submit(engine, "before")
        seen: list[str] = []

        def project(entries: Sequence[Entry], state: ClusterState) -> Callable[[], None]:
            kinds = [e.event.kind for e in entries]
            return lambda: seen.extend(kinds)

        engine.add_projector(project)
        store.hold_appends()
        calls = {
            "submit": submit(engine, "new"),
            "repeated request id": submit(engine, "new"),
            "refusal": submit(engine, "bad", argv=()),
            "reused id": submit(engine, "new", body="other"),
            "cancel": engine.execute(CancelJob("vision/1"), Call(user_of("vision"), "c", "CancelJob", "b")),
        }
        tasks = {name: asyncio.ensure_future(call) for name, call in calls.items()}
        await until(lambda: len(engine.state.jobs) == 2, "applied in memory")
        tasks["read"] = asyncio.ensure_future(engine.read(lambda state: len(state.jobs)))
        done, _ = await asyncio.wait(tasks.values(), timeout=HELD_S)
        assert not done, "answered before the append was durable"
        assert seen == []
        store.release_appends()
        results = dict(zip(tasks, await asyncio.gather(*tasks.values(), return_exceptions=True), strict=True))
        assert results["submit"].names == results["repeated request id"].names == ("vision/2",)
        assert results["refusal"].reason is Reason.INVALID_FIELD
        assert results["reused id"].reason is Reason.REQUEST_ID_REUSED
        assert results["read"] == 2
        assert "JobsCreated" in seen
        await engine.stop()

    run(test)


def test_a_failed_append_tells_every_caller_and_leaves_nothing() -> None:
    async def test(disk: MemoryDisk) -> None:
        engine, store = await ready(disk)
        kept = await submit(engine, "kept")
        resets: list[bool] = []
        engine.add_reset_listener(lambda: resets.append(True))
        store.fail_appends(StoreUnavailable("the disk is gone; put it back"))
        lost = await asyncio.gather(*(submit(engine, f"lost{i}") for i in range(20)), return_exceptions=True)
        assert {getattr(e, "reason", None) for e in lost} == {Reason.STORE_UNAVAILABLE}
        assert {e.status for e in lost} == {"UNAVAILABLE"}
        await until(lambda: engine.leading, "the engine leads again")
        await until(lambda: bool(resets), "what hangs on the state was told")
        assert list(engine.state.jobs) == list(kept.names)
        again = await submit(engine, "lost0")
        assert again.names == ("vision/2",)
        await engine.stop()
        second, _ = await ready(disk)
        assert set(second.state.jobs) == {"vision/1", "vision/2"}
        await second.stop()

    run(test)


def test_an_append_that_failed_after_the_disk_had_it_is_one_job_in_the_end() -> None:
    async def test(disk: MemoryDisk) -> None:
        engine, store = await ready(disk)
        store.fail_appends(StoreUnavailable("the answer was lost"), after_commit=True)
        with pytest.raises(GpushareError):
            await submit(engine, "r1")
        await until(lambda: engine.leading, "the engine leads again")
        assert (await submit(engine, "r1")).names == ("vision/1",)
        assert len(engine.state.jobs) == 1
        await engine.stop()

    run(test)


def test_a_crash_loses_nothing_that_was_answered() -> None:
    async def test(disk: MemoryDisk) -> None:
        engine, store = await ready(disk)
        answered = [name for i in range(50) for name in (await submit(engine, f"r{i}")).names]
        before = engine.state.encode()
        store.crash()
        second, _ = engine_on(disk)
        await second.start()
        assert list(second.state.jobs) == answered
        assert second.term > engine.term
        assert ClusterState.decode(before).jobs == second.state.jobs
        await second.stop()

    run(test)


def test_a_snapshot_of_an_older_version_is_left_aside_and_the_journal_replayed() -> None:
    async def test(disk: MemoryDisk) -> None:
        engine, _ = await ready(disk)
        await submit(engine, "r1")
        await engine.stop()
        disk.snapshots = {engine.state.seq: b'{"seq": 1, "jobs": {}}'}
        second, _ = engine_on(disk)
        await second.start()
        assert list(second.state.jobs) == ["vision/1"]
        await second.stop()

    run(test)


def test_a_full_disk_refuses_submits_and_lets_cancels_through() -> None:
    async def test(disk: MemoryDisk) -> None:
        engine, _store = await ready(disk)
        await submit(engine, "kept")
        disk.full = True
        with pytest.raises(GpushareError):
            await submit(engine, "r1")
        await until(lambda: engine.leading, "the engine leads again on the ballast's room")
        with pytest.raises(GpushareError, match="disk is full"):
            await submit(engine, "r2")
        await engine.execute(CancelJob("vision/1"), Call(user_of("vision"), "c", "CancelJob", "b"))
        await engine.leave_cramped()
        assert engine.cramped, "still no room"
        disk.full = False
        await engine.leave_cramped()
        assert (await submit(engine, "r3")).names == ("vision/2",)
        await engine.stop()

    run(test)


def test_a_full_lane_is_refused_and_other_tenants_go_on() -> None:
    async def test(disk: MemoryDisk) -> None:
        engine, store = await ready(disk, inbox_per_tenant=10)
        await engine.execute(CreateTenant("nlp", TenantSettings()), Call(SYSTEM))
        store.hold_appends()
        flood = [asyncio.ensure_future(submit(engine, f"r{i}")) for i in range(200)]
        other = asyncio.ensure_future(
            engine.execute(SubmitJobs("nlp", (raw_job(),)), Call(user_of("nlp"), "o", "CreateJob", "b"))
        )
        await asyncio.sleep(0)
        store.release_appends()
        results = await asyncio.gather(*flood, return_exceptions=True)
        refused = [r for r in results if isinstance(r, GpushareError)]
        assert refused
        assert {r.reason for r in refused} == {Reason.BUSY}
        assert {r.status for r in refused} == {"RESOURCE_EXHAUSTED"}
        assert isinstance(await other, Outcome)
        await engine.stop()

    run(test)


def test_time_never_runs_backwards_in_the_journal() -> None:
    async def test(disk: MemoryDisk) -> None:
        clock = Clock()
        engine, store = await ready(disk, clock=clock)
        await submit(engine, "r1")
        clock.ms -= 3_600_000
        await submit(engine, "r2")
        times = [r.at_ms for r in store.read(0, 1000)]
        assert times == sorted(times)
        await engine.stop()

    run(test)


def test_a_clock_that_jumped_ahead_does_not_stop_time() -> None:
    async def test(disk: MemoryDisk) -> None:
        clock, boot = Clock(), Clock()
        engine, _ = await ready(disk, clock=clock, boot_ms=boot)
        clock.ms += 10**9
        await submit(engine, "r1")
        clock.ms -= 10**9
        before_ms = engine.now_ms()
        boot.ms += 60_000
        assert engine.now_ms() == before_ms + 30_000, "half speed until the wall clock is there"
        clock.ms = before_ms + 40_000
        assert engine.now_ms() == clock.ms
        await engine.stop()

    run(test)


def test_an_engine_that_contradicts_itself_answers_and_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(disk: MemoryDisk) -> None:
        engine, _ = await ready(disk)
        real = ClusterState.apply

        def apply(state: ClusterState, entry: Entry) -> None:
            real(state, entry)
            if entry.event.kind == "JobsCreated":
                raise AssertionError("contradiction")

        monkeypatch.setattr(ClusterState, "apply", apply)
        with pytest.raises(GpushareError) as caught:
            await submit(engine, "r1")
        assert caught.value.reason is Reason.STORE_UNAVAILABLE
        monkeypatch.undo()
        await until(lambda: engine.leading, "the engine leads again")
        assert not engine.state.jobs, "no half of the command was written"
        assert (await submit(engine, "r1")).names == ("vision/1",)
        await engine.stop()

    run(test)


def test_a_broken_snapshot_ends_leadership_and_not_the_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(disk: MemoryDisk) -> None:
        engine, _ = await ready(disk, snapshot_every=5)
        term = engine.term
        monkeypatch.setattr(ClusterState, "encode", lambda self: 1 // 0)
        for i in range(10):
            await asyncio.gather(submit(engine, f"r{i}"), return_exceptions=True)
            if engine.term != term or not engine.leading:
                break
        else:
            pytest.fail("no snapshot was tried")
        monkeypatch.undo()
        await until(lambda: engine.leading, "the engine leads again")
        await submit(engine, "after")
        await engine.stop()

    run(test)


def test_snapshots_shorten_replay_and_change_nothing() -> None:
    async def test(disk: MemoryDisk) -> None:
        engine, store = await ready(disk, snapshot_every=10)
        for i in range(40):
            await submit(engine, f"r{i}")
        await until(lambda: store.load_snapshot() is not None, "a snapshot was kept")
        found = store.load_snapshot()
        assert found is not None
        assert found[0] > 5
        before = engine.state.jobs
        store.crash()
        second, _ = engine_on(disk)
        await second.start()
        assert second.state.jobs == before
        await second.stop()

    run(test)


def test_usage_counts_to_the_end_of_the_task_and_not_to_its_report() -> None:
    from cluster import Cluster

    from gpushare.core.kinds import AttemptState

    cluster = Cluster()
    cluster.node("n1", 1)
    ends = {"told late": 8_000, "a clock far behind": -(10**12), "a clock far ahead": 10**12, "not told": None}
    charged: dict[str, int] = {}
    for name, after_ms in ends.items():
        job = cluster.submit(resources=RawResources(gpus=1))[0]
        cluster.cycle()
        began_ms = cluster.now_ms
        cluster.run(job)
        cluster.tick(60_000)
        ended_ms = None if after_ms is None else began_ms + after_ms
        cluster.report(job.current()[0], AttemptState.SUCCEEDED, "COMPLETED", exit_code=0, ended_ms=ended_ms)
        before = sum(charged.values())
        charged[name] = cluster.state.tenants["vision"].usage["ann"].charge_milli_ms // 1000 - before
        assert job.ended_ms == began_ms + charged[name]
    assert charged == {
        "told late": 8_000,
        "a clock far behind": 60_000,
        "a clock far ahead": 60_000,
        "not told": 60_000,
    }


def test_a_command_that_breaks_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpushare.core import decide

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    async def test(disk: MemoryDisk) -> None:
        engine, _ = await ready(disk)
        monkeypatch.setitem(decide._HANDLERS, CancelJob, broken)
        with pytest.raises(GpushareError) as caught:
            await engine.execute(CancelJob("vision/1"), Call(user_of("vision"), "c", "CancelJob", "b"))
        assert caught.value.reason is Reason.INTERNAL
        assert (await submit(engine, "r1")).names == ("vision/1",)
        await engine.stop()

    run(test)


def test_a_view_or_listener_that_breaks_does_not_stop_the_engine() -> None:
    async def test(disk: MemoryDisk) -> None:
        engine, _ = await ready(disk)

        def broken(*_: object) -> None:
            raise ZeroDivisionError

        engine.add_projector(lambda entries, state: broken)
        call = Call(user_of("vision"), "r1", "CreateJob", "b")
        with pytest.raises(GpushareError) as caught:
            await engine.execute(SubmitJobs("vision", (raw_job(),)), call, broken)
        assert caught.value.reason is Reason.INTERNAL
        assert (await submit(engine, "r1")).names == ("vision/1",)
        assert engine.leading
        await engine.stop()

    run(test)


def test_a_job_whose_placing_breaks_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster import Cluster

    from gpushare.core import cycle

    cluster = Cluster()
    cluster.node("n1", 1)
    bad, good = cluster.submit(priority=3)[0], cluster.submit()[0]
    real = cycle.place_gang

    def place_gang(plan: Any, ask: Any, *tasks: int) -> Any:
        if ask.job == bad.key:
            raise ZeroDivisionError
        return real(plan, ask, *tasks)

    monkeypatch.setattr(cycle, "place_gang", place_gang)
    assert cluster.cycle().more
    cluster.cycle()
    assert (bad.state, bad.reason) == ("FAILED", Reason.INTERNAL)
    assert good.state == "STARTING"
