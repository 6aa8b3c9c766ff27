"""Under mps-v2 a job is launched behind a limit that was set and read back, or it is refused with the cause."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from standins.fake_mps import INTERPRETER, CudaProcess, FakeMps, cuda_mode, short_folder, wait_for
from standins.fake_nvml import uuid_of
from standins.fence_conformance import TOTAL_MIB, host_snapshot

from gpushare.reasons import Reason
from gpushare_agent.sharing.choose import clean_environ
from gpushare_agent.sharing.mps_control import ControlError, MpsControl, ceiling_mib, shown_limit
from gpushare_agent.sharing.mps_daemon import MpsSettings, find_daemon, short_name, words_of
from gpushare_agent.sharing.mps_v2 import MpsFence
from gpushare_agent.sharing.port import FenceRefused, SliceSpec, Tier

ROOT = os.geteuid() == 0
TENANT = 65534 if ROOT else os.getuid()
OUTSIDER = 65533
needs_root = pytest.mark.skipif(not ROOT, reason="needs root to act as several users")
SPEC = SliceSpec(
    attempt_id="t.1.0.1", gpu_uuids=(uuid_of(0),), gpu_milli=125, gpu_memory_mib=1500, whole=False, uid=TENANT
)


def another(number: int, **changes: object) -> SliceSpec:
    return msgspec.structs.replace(SPEC, attempt_id=f"t.{number}.0.1", **changes)


class Host:
    """One host with MPS; `fence()` is what each start of the agent makes."""

    def __init__(self) -> None:
        self.folder = short_folder()
        self.mps = FakeMps.installed(self.folder)
        self.run_dir = self.folder / "mps"
        self.pipe = self.run_dir / short_name(uuid_of(0))

    def fence(self, *, client_slots: int = 48, **settings: object) -> MpsFence:
        quick: dict[str, object] = {
            "control_timeout_s": 1.0,
            "start_timeout_s": 3.0,
            "server_timeout_s": 1.0,
            "stop_timeout_s": 2.0,
            "multiuser": ROOT,
        }
        environ = clean_environ(self.mps.environ())
        program = str(self.mps.bin / "nvidia-cuda-mps-control")
        return MpsFence(
            MpsSettings(folder=self.run_dir, program=program, environ=environ, **{**quick, **settings}),  # type: ignore[arg-type]
            client_slots=client_slots,
        )

    def run(self, body: Callable[[MpsFence], Awaitable[None]], *, cards: int = 1, **settings: object) -> None:
        """A start of the agent: probe, recover nothing, the body, close."""

        async def run() -> None:
            fence = self.fence(**settings)  # type: ignore[arg-type]
            await fence.probe(host_snapshot(cards))
            await fence.recover([])
            try:
                await body(fence)
            finally:
                await fence.close()

        asyncio.run(run())

    def say(self, text: str, pipe: Path | None = None) -> list[str]:
        return self.mps.control(pipe or self.pipe, text + "\n").stdout.split()

    def daemon(self, card: int = 0) -> int | None:
        return find_daemon(self.run_dir / short_name(uuid_of(card)), uuid_of(card))

    def kill_daemon(self, card: int = 0) -> None:
        pid = self.daemon(card)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: self.daemon(card) is None)


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    for card in range(4):
        host.kill_daemon(card)
    host.folder.chmod(0o755)
    shutil.rmtree(host.folder)


# -- a fence that stands


def test_the_job_gets_its_card_its_daemon_and_its_limits(host: Host) -> None:
    async def body(fence: MpsFence) -> None:
        fenced = await fence.prepare(SPEC)
        mps = {key: value for key, value in fenced.env.items() if key.startswith("CUDA_")}
        assert mps == {
            "CUDA_VISIBLE_DEVICES": uuid_of(0),
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_MPS_PIPE_DIRECTORY": str(host.pipe),
            "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "12.5",
            "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=1500M",
        }
        assert len(str(host.pipe)) <= 87
        assert fenced.tier is Tier.MPS_V2
        assert "ceiling of 2048 MiB" in fenced.detail
        assert fence.holds(SPEC.attempt_id)

    host.run(body)
    assert cuda_mode(host.pipe) == "MPS"


def test_every_card_has_a_daemon_of_its_own_that_sees_that_card_alone(host: Host) -> None:
    os.environ["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = "7"
    try:

        async def body(fence: MpsFence) -> None:
            for card in range(3):
                await fence.prepare(another(card + 1, gpu_uuids=(uuid_of(card),)))

        host.run(body, cards=3)
    finally:
        del os.environ["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"]
    pids = [host.daemon(card) for card in range(3)]
    assert None not in pids
    assert len(set(pids)) == 3
    for card, pid in enumerate(pids):
        assert pid is not None
        cuda = {word for word in words_of(pid, "environ") if word.startswith("CUDA_")}
        pipe = host.run_dir / short_name(uuid_of(card))
        assert cuda == {
            f"CUDA_VISIBLE_DEVICES={uuid_of(card)}",
            f"CUDA_MPS_PIPE_DIRECTORY={pipe}",
            f"CUDA_MPS_LOG_DIRECTORY={pipe}.log",
        }


def test_the_ceiling_is_the_largest_share_on_the_card_for_running_and_later_servers(host: Host) -> None:
    def ceilings() -> list[str]:
        (server,) = host.say("get_server_list")
        return host.say(
            "get_default_device_pinned_mem_limit 0\n"
            f"get_device_pinned_mem_limit {server} 0\n"
            "get_default_active_thread_percentage\n"
            f"get_active_thread_percentage {server}"
        )

    async def body(fence: MpsFence) -> None:
        await fence.prepare(another(1, gpu_memory_mib=3000, gpu_milli=100))
        assert ceilings() == ["3G", "3G", "10.0", "10.0"]
        await fence.prepare(another(2, gpu_memory_mib=10_240, gpu_milli=333))
        assert ceilings() == ["10G", "10G", "33.3", "33.3"]
        await fence.prepare(another(3, gpu_memory_mib=500, gpu_milli=1))
        assert ceilings() == ["10G", "10G", "33.3", "33.3"]
        await fence.release("t.2.0.1")
        await fence.prepare(another(4, gpu_memory_mib=500, gpu_milli=1))
        assert ceilings() == ["3G", "3G", "10.0", "10.0"]

    host.run(body)


@pytest.mark.parametrize(
    ("share", "total", "ceiling"),
    [(1, 8192, 1024), (1024, 8192, 1024), (1025, 8192, 2048), (143_000, 143_771, 143_360), (143_700, 143_771, 143_771)],
)
def test_a_ceiling_can_be_read_back_without_doubt_and_is_never_below_the_share(
    share: int, total: int, ceiling: int
) -> None:
    assert ceiling_mib(share, total) == ceiling
    assert ceiling >= share
    assert ceiling % 1024 == 0 or ceiling == total
    assert shown_limit(ceiling) == f"{ceiling // 1024}G"


def test_a_fresh_server_is_believed_by_its_log_and_a_silent_log_by_its_answer(host: Host) -> None:
    async def body(fence: MpsFence) -> None:
        for silent in (None, 1):
            host.mps.switch(server_silent_log=silent)
            for server in host.say("get_server_list"):
                host.say(f"shutdown_server {server} -f")
            await fence.prepare(SPEC)
            await fence.release(SPEC.attempt_id)

    host.run(body)


def test_many_launches_at_once_do_not_drop_each_others_sessions(host: Host) -> None:
    async def body(fence: MpsFence) -> None:
        await asyncio.gather(*(fence.prepare(another(number)) for number in range(12)))
        assert all(fence.holds(f"t.{number}.0.1") for number in range(12))

    host.run(body, control_timeout_s=10.0)


def test_sessions_that_are_dropped_now_and_then_are_tried_again(host: Host) -> None:
    async def body(fence: MpsFence) -> None:
        host.mps.switch(drop=3)
        await fence.prepare(SPEC)

    host.run(body)


# -- a fence that is refused


def freshly_refused(host: Host, fence: MpsFence, spec: SliceSpec = SPEC) -> Awaitable[str]:
    """Prepare must be refused; the cause."""

    async def run() -> str:
        with pytest.raises(FenceRefused) as refused:
            await fence.prepare(spec)
        assert refused.value.reason is Reason.FENCE_FAILED
        assert not fence.holds(spec.attempt_id)
        assert uuid_of(0) in refused.value.detail
        return refused.value.detail

    return run()


FAULTS = {
    "control socket dead, control channel alive": ({"control_deaf": 1}, "nobody accepts connections"),
    "both sockets dead": ({"deaf": 1}, "nobody accepts connections"),
    "a size that the daemon misparsed": (
        {"misparse_mib": 1},
        "a ceiling of 2048M was asked for, but the daemon says 0G",
    ),
    "every session dropped": ({"drop": 1000}, "dropped the session, 4 times in a row"),
    "a daemon that answers nothing": ({"silent": 1}, "answered nothing within 1 s"),
    "a running server that keeps its old ceiling": (
        {"ignore_server_limit": 1},
        "a ceiling of 2048M for the running server was asked for, but the daemon says 0G",
    ),
    "a server in FAULT": ({"server_status": "FAULT"}, "is not usable: FAULT"),
    "a server that never gets ready": ({"server_status": "INITIALIZING"}, "does not become ACTIVE within 1 s"),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_fault_refuses_the_launch_with_its_cause_and_heals_when_it_has_passed(host: Host, fault: str) -> None:
    switches, cause = FAULTS[fault]

    async def body(fence: MpsFence) -> None:
        host.mps.switch(**switches)
        if "deaf" in fault or "dead" in fault:
            wait_for(lambda: cuda_mode(host.pipe) == "no MPS")
        assert cause in await freshly_refused(host, fence)
        host.mps.switch(**dict.fromkeys(switches))
        await fence.prepare(SPEC)
        assert cuda_mode(host.pipe) == "MPS"

    host.run(body)


def test_a_control_socket_that_was_removed_refuses_the_launch(host: Host) -> None:
    async def body(fence: MpsFence) -> None:
        (host.pipe / "control").unlink()  # as a cleaner of temporary files does; root's commands still work
        assert "nobody accepts connections" in await freshly_refused(host, fence)
        await fence.prepare(SPEC)
        assert cuda_mode(host.pipe) == "MPS"

    host.run(body)


@pytest.mark.parametrize(
    "switches", [{"server_dies": 1}, {"server_log_mib": 1}, {"server_slow_s": 60}], ids=lambda one: next(iter(one))
)
def test_a_new_server_that_is_not_as_it_must_be_refuses_the_launch(host: Host, switches: dict[str, int]) -> None:
    causes = {
        "server_dies": "the MPS server does not start",
        "server_log_mib": "but the server's log says 1 instead of 2048",
        "server_slow_s": "does not become ACTIVE",
    }

    async def body(fence: MpsFence) -> None:
        for server in host.say("get_server_list"):
            host.say(f"shutdown_server {server} -f")
        wait_for(lambda: not host.say("get_server_list"))
        host.mps.switch(**switches)
        assert causes[next(iter(switches))] in await freshly_refused(host, fence)

    host.run(body)


@pytest.mark.parametrize("mode", [0o777, 0o000, 0o755])
def test_a_pipe_directory_whose_mode_somebody_changed_refuses_the_launch(host: Host, mode: int) -> None:
    async def body(fence: MpsFence) -> None:
        host.pipe.chmod(mode)
        assert "somebody changed the owner, mode or access list" in await freshly_refused(host, fence)
        await fence.prepare(SPEC)  # built anew, since no job was there

    host.run(body)


@needs_root
def test_a_directory_above_that_keeps_the_jobs_user_out_refuses_the_launch(host: Host) -> None:
    async def body(fence: MpsFence) -> None:
        host.folder.chmod(0o700)
        cause = await freshly_refused(host, fence)
        assert f"{host.folder} (mode 0700, owner 0) does not let user {TENANT} pass through it" in cause
        assert "would run without MPS" in cause
        host.folder.chmod(0o755)
        await fence.prepare(SPEC)

    host.run(body)


def test_an_idle_session_that_blocks_the_daemon_refuses_the_launch(host: Host) -> None:
    async def body(fence: MpsFence) -> None:
        with subprocess.Popen(
            [str(host.mps.bin / "nvidia-cuda-mps-control")],
            env=host.mps.environ(CUDA_MPS_PIPE_DIRECTORY=str(host.pipe)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as idle:
            assert idle.stdin is not None
            assert idle.stdout is not None
            idle.stdin.write(b"get_default_active_thread_percentage\n")
            idle.stdin.flush()
            idle.stdout.readline()
            assert "dropped the session" in await freshly_refused(host, fence)
            idle.stdin.close()
        await fence.prepare(SPEC)

    host.run(body)


@pytest.mark.parametrize(
    "changes", [{"gpu_memory_mib": 0}, {"gpu_memory_mib": TOTAL_MIB + 1}, {"gpu_milli": 0}, {"gpu_milli": 1001}]
)
def test_a_share_that_is_none_is_refused(host: Host, changes: dict[str, int]) -> None:
    async def body(fence: MpsFence) -> None:
        assert "are no share of" in await freshly_refused(host, fence, another(1, **changes))

    host.run(body)


def test_a_card_takes_so_many_clients_and_no_more(host: Host) -> None:
    async def body(fence: MpsFence) -> None:
        await fence.prepare(another(2))
        await fence.prepare(another(3))
        assert "its 2 client slots are taken" in await freshly_refused(host, fence)
        await fence.release("t.2.0.1")
        await fence.prepare(SPEC)

    host.run(body, client_slots=2)


@pytest.mark.parametrize("switches", [{"control_deaf": 1}, {"silent": 1}, {"misparse_mib": 1}], ids=str)
def test_asking_again_for_the_same_attempt_tries_the_fence_again(host: Host, switches: dict[str, int]) -> None:
    async def body(fence: MpsFence) -> None:
        first = await fence.prepare(SPEC)
        assert await fence.prepare(SPEC) == first
        host.mps.switch(**switches)
        if "control_deaf" in switches:
            wait_for(lambda: cuda_mode(host.pipe) == "no MPS")
        with pytest.raises(FenceRefused):
            await fence.prepare(SPEC)

    host.run(body)


# -- a daemon that dies, an agent that restarts


def test_a_dead_daemon_with_live_jobs_takes_no_new_job_and_is_rebuilt_after_them(host: Host) -> None:
    async def body(fence: MpsFence) -> None:
        await fence.prepare(another(2))
        host.kill_daemon()
        assert "is gone while jobs use its server" in await freshly_refused(host, fence)
        assert host.daemon() is None
        await fence.release("t.2.0.1")
        await fence.prepare(SPEC)
        assert host.daemon() is not None

    host.run(body)


def test_a_restarted_agent_adopts_the_daemon_and_knows_its_jobs(host: Host) -> None:
    async def before(fence: MpsFence) -> None:
        await fence.prepare(another(1, gpu_memory_mib=8192))
        await fence.prepare(another(2, gpu_memory_mib=4096))

    host.run(before)
    pid, servers = host.daemon(), host.say("get_server_list")

    async def after() -> None:
        fence = host.fence()
        await fence.probe(host_snapshot(1))
        await fence.recover([another(1, gpu_memory_mib=8192)])  # the other has ended meanwhile
        assert (fence.holds("t.1.0.1"), fence.holds("t.2.0.1")) == (True, False)
        assert host.daemon() == pid
        assert host.say("get_server_list") == servers
        assert {str(one) for one in fence.own_pids()} == set(servers)
        await fence.prepare(another(3, gpu_memory_mib=2048))
        assert host.say("get_default_device_pinned_mem_limit 0") == ["8G"]
        assert host.daemon() == pid
        await fence.close()

    asyncio.run(after())


def test_a_restarted_agent_leaves_a_silent_daemon_to_its_jobs_and_ends_it_after_them(host: Host) -> None:
    async def before(fence: MpsFence) -> None:
        await fence.prepare(another(1))

    host.run(before)
    pid = host.daemon()
    host.mps.switch(silent=1)

    async def after() -> None:
        fence = host.fence()
        await fence.probe(host_snapshot(1))
        await fence.recover([another(1)])
        assert host.daemon() == pid
        assert "suspect until its jobs have ended" in await freshly_refused(host, fence, another(2))
        host.mps.switch(silent=None)
        await fence.release("t.1.0.1")
        assert host.daemon() is None
        await fence.prepare(SPEC)
        await fence.close()

    asyncio.run(after())


@needs_root
def test_a_tenants_process_in_the_daemons_clothes_is_not_adopted(host: Host) -> None:
    disguise = {"CUDA_MPS_PIPE_DIRECTORY": str(host.pipe), "CUDA_VISIBLE_DEVICES": uuid_of(0)}
    with subprocess.Popen(
        [INTERPRETER, "-c", "import time; time.sleep(60)", "nvidia-cuda-mps-control", "-f"],
        env=disguise,
        user=TENANT,
    ) as impostor:
        try:
            wait_for(lambda: words_of(impostor.pid, "environ")[:1] != [""])
            assert host.daemon() is None
        finally:
            impostor.kill()


def test_kill_9_of_the_agent_leaves_the_daemon_and_its_clients_alone(host: Host) -> None:
    program = (
        "import asyncio, sys, time\n"
        "from pathlib import Path\n"
        "from standins.fence_conformance import host_snapshot\n"
        "from standins.fake_nvml import uuid_of\n"
        "from gpushare_agent.sharing.choose import CardFences\n"
        "from gpushare_agent.sharing.port import SliceSpec\n"
        "async def run():\n"
        "    fence = CardFences(Path(sys.argv[1]), single_user=True)\n"
        "    await fence.probe(host_snapshot(1))\n"
        "    spec = SliceSpec(attempt_id='t.1.0.1', gpu_uuids=(uuid_of(0),), gpu_milli=125,\n"
        "        gpu_memory_mib=1500, whole=False, uid=int(sys.argv[2]))\n"
        "    await fence.prepare(spec)\n"
        "    print('fenced', flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(run())\n"
    )
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    with subprocess.Popen(
        [sys.executable, "-c", program, str(host.folder), str(TENANT)],
        env=host.mps.environ(PYTHONPATH=path),
        stdout=subprocess.PIPE,
    ) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"fenced\n"
        pid = host.daemon()
        assert pid is not None
        assert os.getsid(pid) == pid
        job = CudaProcess(host.pipe)
        assert job.mode == "MPS"
        agent.kill()
    assert psutil.pid_exists(pid)
    assert cuda_mode(host.pipe) == "MPS"
    job.close()

    async def after() -> None:
        fence = host.fence()
        await fence.probe(host_snapshot(1))
        await fence.recover([SPEC])
        assert fence.holds(SPEC.attempt_id)
        assert host.daemon() == pid
        await fence.close()

    asyncio.run(after())


# -- the end of a client


def test_a_client_that_cannot_be_terminated_makes_its_server_suspect_until_it_is_empty(host: Host) -> None:
    async def body(fence: MpsFence) -> None:
        await fence.prepare(SPEC)
        await fence.prepare(another(2))
        job = CudaProcess(host.pipe)
        host.mps.switch(terminate_fails=1)
        done = await fence.terminate_clients(SPEC.attempt_id, [os.getpid()])
        assert (done.ended, done.failed) == ((), (os.getpid(),))
        assert done.detail
        host.mps.switch(terminate_fails=None)
        job.close()
        await fence.release(SPEC.attempt_id)
        old = host.daemon()
        assert "suspect until its jobs have ended" in await freshly_refused(host, fence, another(3))
        await fence.release("t.2.0.1")
        await fence.prepare(another(4))
        assert host.daemon() != old

    host.run(body)


def test_a_server_under_which_a_client_died_takes_no_other_until_it_was_rebuilt(host: Host) -> None:
    async def body(fence: MpsFence) -> None:
        await fence.prepare(SPEC)
        await fence.prepare(another(2))
        fence.suspect("t.9.0.1", "of no concern")
        fence.suspect(SPEC.attempt_id, "a process died")
        await fence.release(SPEC.attempt_id)
        old = host.daemon()
        assert "a process died" in await freshly_refused(host, fence, another(3))
        await fence.release("t.2.0.1")
        await fence.prepare(another(4))
        assert host.daemon() != old

    host.run(body)


def test_a_client_that_left_by_itself_needs_no_termination(host: Host) -> None:
    async def body(fence: MpsFence) -> None:
        await fence.prepare(SPEC)
        assert cuda_mode(host.pipe) == "MPS"
        done = await fence.terminate_clients(SPEC.attempt_id, [os.getpid()])
        assert done.failed == ()

    host.run(body)


def test_a_daemon_that_does_not_quit_is_ended_all_the_same(host: Host) -> None:
    async def body(fence: MpsFence) -> None:
        await fence.prepare(SPEC)
        await fence.release(SPEC.attempt_id)
        servers = [int(word) for word in host.say("get_server_list")]
        assert servers
        host.mps.switch(no_quit=1)
        await fence.vacate(uuid_of(0))
        assert host.daemon() is None
        wait_for(lambda: not any(psutil.pid_exists(server) for server in servers))

    host.run(body, stop_timeout_s=0.3)


# -- who reaches the socket


@needs_root
def test_only_users_with_a_job_on_the_card_reach_its_daemon(host: Host) -> None:
    def reaches(uid: int) -> bool:
        program = (
            "import socket, sys\n"
            "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
            "sys.exit(s.connect_ex(sys.argv[1]) != 0)\n"
        )
        command = [INTERPRETER, "-c", program, str(host.pipe / "control")]
        return subprocess.run(command, user=uid, timeout=10, check=False).returncode == 0

    async def body(fence: MpsFence) -> None:
        fenced = await fence.prepare(SPEC)
        everybody = "every user of this host can reach" in fenced.detail
        assert reaches(TENANT)
        assert reaches(OUTSIDER) == everybody
        await fence.prepare(another(2, uid=OUTSIDER))
        assert reaches(OUTSIDER)
        await fence.release(SPEC.attempt_id)
        assert reaches(OUTSIDER)
        assert reaches(TENANT) == everybody

    host.run(body)


def test_without_a_daemon_the_cause_is_what_the_program_says(host: Host) -> None:
    control = MpsControl(str(host.mps.bin / "nvidia-cuda-mps-control"), host.folder, host.mps.environ())
    began_s = time.monotonic()
    with pytest.raises(ControlError, match="Cannot find MPS control daemon process"):
        asyncio.run(control.ask("get_server_list"))
    assert time.monotonic() - began_s < 5
