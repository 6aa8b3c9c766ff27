"""The way of an order to a launch: users of a name service that may hang, device files, the fence read back."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gpushare.core.kinds import SignalTarget, VisibleDevices
from gpushare.core.model import EarlySignal
from gpushare.reasons import Reason
from gpushare_agent import launching
from gpushare_agent.core import StartOrder
from gpushare_agent.gpus.port import DriverState, GpuInfo, GpuSnapshot
from gpushare_agent.launching import FenceFailed, Launching, LaunchSettings, other_cards
from gpushare_agent.launchspec import LaunchRefused, LaunchSpec, UnixUser
from gpushare_agent.sharing.port import Enforcement, Fenced, FenceRefused, SliceSpec, Tier
from gpushare_agent.users import LOOKUPS_MAX, UserLookup

ANN = UnixUser(1001, 1001, (1001, 27), "ann", "/home/ann", "/bin/sh")


def order(**fields: Any) -> StartOrder:
    settings: dict[str, Any] = {
        "attempt_id": "v.1.0.1", "term": 1, "job_id": "1", "task_index": 0,
        "task_count": 1, "number": 1, "unix_user": "ann", "argv": ("prog", "x"), "script": b"", "env": {},
        "working_directory": "/w", "gpu_uuids": ("GPU-a",), "gpu_milli": 250, "gpu_memory_mib": 1000,
        "cpu_milli": 2000, "memory_mib": 4096, "max_run_ms": 60_000, "grace_ms": 5000, "tier": "timeslice",
    }  # fmt: skip
    return StartOrder(**{**settings, **fields})


class Users:
    """A name service that counts, and that can hang."""

    def __init__(self) -> None:
        self.asked = 0
        self.free = threading.Event()
        self.free.set()

    def __call__(self, name: str) -> UnixUser:
        self.asked += 1
        self.free.wait(30)
        if name == "ann":
            return ANN
        raise LaunchRefused(Reason.UNIX_USER_UNMAPPED, f"no user {name}")


def refused(work: Awaitable[object]) -> LaunchRefused:
    async def run() -> LaunchRefused:
        with pytest.raises(LaunchRefused) as caught:
            await work
        return caught.value

    return asyncio.run(run())


class TestUsers:
    def test_a_burst_of_one_users_jobs_asks_once(self) -> None:
        users = Users()

        async def burst() -> list[UnixUser]:
            lookup = UserLookup(users)
            found = await asyncio.gather(*(lookup.find("ann") for _ in range(50)))
            return [*found, await lookup.find("ann")]

        assert asyncio.run(burst()) == [ANN] * 51
        assert users.asked == 1

    def test_a_refusal_is_given_to_everybody_and_not_remembered(self) -> None:
        users = Users()

        async def ask() -> list[object]:
            lookup = UserLookup(users)
            first = await asyncio.gather(lookup.find("eve"), lookup.find("eve"), return_exceptions=True)
            return [*first, *await asyncio.gather(lookup.find("eve"), return_exceptions=True)]

        found = asyncio.run(ask())
        assert [err.reason for err in found if isinstance(err, LaunchRefused)] == [Reason.UNIX_USER_UNMAPPED] * 3
        assert users.asked == 2

    def test_no_user_named_is_refused_without_asking(self) -> None:
        users = Users()
        assert refused(UserLookup(users).find("")).reason is Reason.UNIX_USER_UNMAPPED
        assert users.asked == 0

    def test_a_name_service_that_hangs_holds_few_threads_and_the_job_may_go_elsewhere(self) -> None:
        users = Users()
        users.free.clear()

        async def ask() -> list[object]:
            lookup = UserLookup(users, patience_s=0.2)
            began_s = time.monotonic()
            found = await asyncio.gather(*(lookup.find(f"u{n}") for n in range(20)), return_exceptions=True)
            assert time.monotonic() - began_s < 2
            return list(found)

        try:
            found = asyncio.run(ask())
        finally:
            users.free.set()
        assert {err.reason for err in found if isinstance(err, LaunchRefused)} == {Reason.NOT_STARTED}
        assert users.asked == LOOKUPS_MAX


class Executor:
    """Takes a launch as the real one does: the fence runs after the intent."""

    def __init__(self) -> None:
        self.launched: list[LaunchSpec] = []
        self.after_intent: Callable[[], None] = lambda: None

    async def launch(self, spec: LaunchSpec, fence: Callable[[], Awaitable[None]]) -> None:
        self.after_intent()
        await fence()
        self.launched.append(spec)

    def private_dir(self, attempt_id: str) -> Path:
        return Path("/private") / attempt_id

    def stop_notice(self, attempt_id: str) -> Path:
        return Path("/notices") / attempt_id / "notice"


class Scratch:
    """Notes what it was asked to make."""

    def __init__(self) -> None:
        self.made: list[tuple[str, UnixUser]] = []

    def make(self, attempt_id: str, user: UnixUser) -> None:
        self.made.append((attempt_id, user))

    def path(self, attempt_id: str) -> Path:
        return Path("/scratch") / attempt_id


class Fence:
    """Answers with what stands in `answer`."""

    def __init__(self) -> None:
        self.asked: list[SliceSpec] = []
        self.answer: Fenced | FenceRefused = Fenced(
            env={"CUDA_MPS_X": "1"}, tier=Tier.TIMESLICE, enforcement=Enforcement.SOFT
        )

    async def prepare(self, spec: SliceSpec) -> Fenced:
        self.asked.append(spec)
        if isinstance(self.answer, FenceRefused):
            raise self.answer
        return self.answer


class Node:
    def __init__(self, **settings: Any) -> None:
        self.executor = Executor()
        self.fence = Fence()
        self.users = Users()
        self.found: tuple[Reason, str] | None = None
        self.stop: Reason | None = None
        values: dict[str, Any] = {"node": "n1", "single_user": False, "log_cap_bytes": 9, "simulated": True}
        info = GpuInfo(uuid="GPU-a", index=0, minor=0, model="M", total_mib=80_000, reserved_mib=0, simulated=True)
        other = GpuInfo(uuid="GPU-b", index=1, minor=1, model="M", total_mib=80_000, reserved_mib=0, simulated=True)
        self.scratch = Scratch()
        self.snapshot = GpuSnapshot(state=DriverState.OK, infos=(other, msgspec.structs.replace(info, index=0)))
        node = self

        class Cards:
            async def obstacle(self, spec: SliceSpec) -> tuple[Reason, str] | None:
                return node.found

            async def look(self) -> GpuSnapshot:
                return node.snapshot

        self.launching = Launching(
            LaunchSettings(**{**values, "filters_devices": False, **settings}),
            self.executor,  # type: ignore[arg-type]
            self.fence,  # type: ignore[arg-type]
            UserLookup(self.users),
            self.scratch,  # type: ignore[arg-type]
            {"GPU-a": info}.get,
            Cards(),
        )

    async def launch(self, wanted: StartOrder) -> None:
        ready = await self.launching.ready(wanted)
        fenced = await self.launching.fence(wanted, ready)
        await self.launching.launch(wanted, ready, fenced, lambda: self.stop)


class TestLaunch:
    def test_a_launch_has_everything_the_order_said(self) -> None:
        node = Node()
        asyncio.run(node.launch(order()))
        (spec,) = node.executor.launched
        assert (spec.argv, spec.cwd, spec.user) == (("prog", "x"), "/w", ANN)
        assert (spec.run_limit_ms, spec.grace_ms, spec.on_disconnect) == (60_000, 5000, "keep")
        assert (spec.cpu_milli, spec.host_memory_mib, spec.log_cap_bytes) == (2000, 4096, 9)
        assert spec.env["CUDA_MPS_X"] == "1"
        assert spec.env["GPUSHARE_SIM_DIR"] == "/private/v.1.0.1"
        assert spec.private_dir
        assert spec.env["GPUSHARE_SCRATCH"] == "/scratch/v.1.0.1"
        assert node.scratch.made == [("v.1.0.1", ANN)]
        assert node.fence.asked[0].demanded is Enforcement.SOFT

    def test_a_dead_disk_of_scratch_refuses_the_launch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(launching, "SCRATCH_TIMEOUT_S", 0.1)
        node = Node()
        free = threading.Event()
        node.scratch.make = lambda attempt_id, user: free.wait(60)  # type: ignore[assignment, method-assign, return-value]
        try:
            error = refused(node.launch(order()))
        finally:
            free.set()
        assert (error.reason, node.executor.launched) == (Reason.INFRA, [])
        assert "scratch_dir did not answer" in error.detail

    def test_an_early_signal_goes_by_this_hosts_number(self) -> None:
        node = Node()
        asyncio.run(node.launch(order(early_signal=EarlySignal("USR2", 1000, SignalTarget.ALL))))
        (spec,) = node.executor.launched
        early = (spec.early_signal, spec.early_signal_ms, spec.early_signal_to_all)
        assert early == (signal.SIGUSR2, 1000, True)
        assert spec.env["GPUSHARE_STOP_NOTICE"] == "/notices/v.1.0.1/notice"

    def test_the_fence_is_read_back_once_the_intent_is_durable(self) -> None:
        node = Node()
        node.executor.after_intent = lambda: node.fence.asked.append(order().gpu_uuids)  # type: ignore[arg-type]
        asyncio.run(node.launch(order()))
        assert [type(asked).__name__ for asked in node.fence.asked] == ["SliceSpec", "tuple", "SliceSpec"]

    @pytest.mark.parametrize(
        "after",
        [
            Fenced(env={"CUDA_MPS_X": "2"}, tier=Tier.TIMESLICE, enforcement=Enforcement.SOFT),
            FenceRefused(Reason.FENCE_FAILED, "the daemon is gone"),
        ],
    )
    def test_a_fence_that_fell_after_the_intent_refuses_the_launch(self, after: Fenced | FenceRefused) -> None:
        node = Node()

        def fall() -> None:
            node.fence.answer = after

        node.executor.after_intent = fall
        assert isinstance(refused(node.launch(order())), FenceFailed)
        assert node.executor.launched == []

    def test_a_weaker_fence_than_the_one_it_was_placed_for_is_refused(self) -> None:
        node = Node()
        err = refused(node.launch(order(tier="mps-v2")))
        assert (err.reason, isinstance(err, FenceFailed)) == (Reason.FENCE_FAILED, False)
        assert "mps-v2" in err.detail
        assert "timeslice" in err.detail

    def test_what_cannot_be_fenced_here_says_nothing_about_the_fences_health(self) -> None:
        node = Node()
        node.fence.answer = FenceRefused(Reason.FENCE_UNAVAILABLE, "another user has the server")
        err = refused(node.launch(order()))
        assert (err.reason, isinstance(err, FenceFailed)) == (Reason.FENCE_FAILED, False)
        assert "another user has the server" in err.detail

    def test_a_stop_that_came_meanwhile_wins(self) -> None:
        node = Node()
        node.stop = Reason.CANCELLED
        assert refused(node.launch(order())).reason is Reason.NOT_STARTED
        assert node.executor.launched == []

    def test_what_is_really_on_the_card_counts_more_than_the_ledger(self) -> None:
        node = Node()
        node.found = (Reason.OCCUPIED, "pid 7 of eve")
        err = refused(node.launch(order()))
        assert (err.reason, err.detail) == (Reason.OCCUPIED, "pid 7 of eve")
        assert node.fence.asked == []

    def test_a_cpu_job_needs_no_fence_and_no_private_directory(self) -> None:
        node = Node()
        asyncio.run(node.launch(order(gpu_uuids=(), gpu_milli=0, gpu_memory_mib=0, tier="")))
        (spec,) = node.executor.launched
        assert (spec.env["CUDA_VISIBLE_DEVICES"], spec.private_dir, node.fence.asked) == ("", False, [])

    def test_a_single_users_agent_asks_no_name_service_and_runs_jobs_as_itself(self) -> None:
        node = Node(single_user=True)
        asyncio.run(node.launch(order(unix_user="whoever")))
        (spec,) = node.executor.launched
        assert spec.user is None
        assert spec.env["HOME"]
        assert node.users.asked == 0

    def test_a_script_is_run_with_the_arguments_that_were_given(self) -> None:
        node = Node()
        asyncio.run(node.launch(order(script=b"#!/bin/sh\n", argv=("a", "b"))))
        (spec,) = node.executor.launched
        assert (spec.script, spec.argv[1:]) == (b"#!/bin/sh\n", ("a", "b"))


class TestByIndex:
    def test_the_indexes_of_the_driver_stand_in_place_of_the_uuids(self) -> None:
        node = Node()
        asyncio.run(node.launch(order(visible_devices=VisibleDevices.INDEX)))
        assert node.executor.launched[0].env["CUDA_VISIBLE_DEVICES"] == "0"

    def test_cards_that_are_counted_anew_between_fence_and_launch_refuse_it(self) -> None:
        node = Node()

        def swap() -> None:
            turned = tuple(msgspec.structs.replace(info, index=1 - info.index) for info in node.snapshot.infos)
            node.snapshot = msgspec.structs.replace(node.snapshot, infos=turned)

        node.executor.after_intent = swap
        err = refused(node.launch(order(visible_devices=VisibleDevices.INDEX)))
        assert (err.reason, isinstance(err, FenceFailed)) == (Reason.FENCE_FAILED, True)
        assert node.executor.launched == []

    def test_a_driver_that_does_not_answer_refuses_it_and_says_so(self) -> None:
        node = Node()
        node.snapshot = GpuSnapshot(state=DriverState.HUNG, detail="no answer for 5 s")
        err = refused(node.launch(order(visible_devices=VisibleDevices.INDEX)))
        assert err.reason is Reason.FENCE_FAILED
        assert "no answer for 5 s" in err.detail
        assert node.executor.launched == []


class TestDevices:
    def card(self, minor: int | None) -> GpuInfo:
        return GpuInfo(uuid="GPU-a", index=0, minor=minor, model="M", total_mib=1, reserved_mib=0)

    @pytest.fixture
    def devices(self, tmp_path: Path) -> Path:
        if os.geteuid() != 0:
            pytest.skip("only root makes device files")
        for minor in (0, 1, 12):
            os.mknod(tmp_path / f"nvidia{minor}", 0o666 | 0o020000, os.makedev(195, minor))
        os.mknod(tmp_path / "nvidiactl", 0o666 | 0o020000, os.makedev(195, 255))
        (tmp_path / "nvidia7").touch()
        return tmp_path

    def test_every_card_but_the_granted_ones_is_denied(self, devices: Path) -> None:
        assert other_cards([self.card(1)], devices) == ((195, 0), (195, 12))
        assert other_cards([], devices) == ((195, 0), (195, 1), (195, 12))

    def test_a_card_without_a_known_device_file_denies_nothing(self, devices: Path) -> None:
        assert other_cards([self.card(None)], devices) == ()
