"""Jobs behind MPS on a whole cluster: what their environment holds, and that none ever starts without its fence.

The agent is the real one; `nvidia-cuda-mps-control` on PATH and the driver's library are stand-ins. The programs that
jobs run never use a card, so what would go wrong silently on a real one (CUDA starts without MPS and without any limit
when it cannot reach the socket) is judged by whether a job that must not start left a line in the witness's file.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import leaks
import pytest
from live_cluster import LiveCluster, attempt_of, attempt_state, live_cluster, run, state_of, until
from standins.fake_mps import FakeMps, cuda_mode, short_folder
from standins.fake_nvml import FakeNvml, uuid_of
from witness import MARK, hold

from gpushare.client.messages import Enforcement, Job, Role

USABLE_MIB = 143_771 - 600 - 512
CONTROL, SERVER = "nvidia-cuda-mps-control", "nvidia-cuda-mps-server"


@pytest.fixture
def home() -> Iterator[Path]:
    """A pipe directory's path has 87 characters at most, and every user must be able to pass through it."""
    folder = short_folder()
    yield folder
    shutil.rmtree(folder)


@asynccontextmanager
async def mps_cluster(home: Path, cards: int, **agent: object) -> AsyncIterator[tuple[LiveCluster, FakeMps]]:
    """One node whose cards can do MPS. A launch that was refused is not tried again."""
    async with live_cluster(home / "c", infra_retries=0, infra_backoff_ms=50) as cluster:
        mps = FakeMps.installed(home / "m")
        nvml = FakeNvml.with_cards(home / "n", cards)
        names = ("LD_LIBRARY_PATH", "GPUSHARE_FAKE_NVML_STATE", "PATH", "FAKE_MPS_STATE")
        environ = {name: value for name, value in (nvml.environ() | mps.environ()).items() if name in names}
        await cluster.add_agent("n1", environ=environ, **agent)
        # A card's daemon outlives its agent, as the jobs behind it do.
        cluster.outlives = (CONTROL, SERVER)
        await cluster.ready()
        cluster.note_descriptors()
        yield cluster, mps
        assert nvml.setters() == []


def pipe_of(cluster: LiveCluster, card: int) -> Path:
    return cluster.node_home("n1") / "run" / "mps" / f"{card:08x}0000"


def daemons(home: Path) -> dict[str, list[int]]:
    """The control daemons that run, by the card that each was given."""
    found: dict[str, list[int]] = {}
    for pid in leaks.processes_of(home):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            environ = dict(
                line.partition("=")[::2] for line in Path(f"/proc/{pid}/environ").read_text().split("\0") if line
            )
            if "-f" in words and any(word.endswith(CONTROL) for word in words):
                found.setdefault(environ["CUDA_VISIBLE_DEVICES"], []).append(pid)
    return found


def ceiling(mps: FakeMps, pipe: Path) -> tuple[str, str]:
    """(memory, thread percentage) that the card's server holds over all its clients, as the daemon prints them."""
    (server,) = mps.control(pipe, "get_server_list\n").stdout.split()
    memory = mps.control(pipe, f"get_device_pinned_mem_limit {server} 0\n").stdout.strip()
    return memory, mps.control(pipe, f"get_active_thread_percentage {server}\n").stdout.strip()


def environment_of(path: Path) -> dict[str, str]:
    return dict(line.partition("=")[::2] for line in path.read_text().splitlines())


# -- what a job gets


async def fenced_jobs(home: Path) -> None:
    async with mps_cluster(home, cards=2) as (cluster, mps):
        before = daemons(home)
        assert {uuid: len(pids) for uuid, pids in before.items()} == {uuid_of(0): 1, uuid_of(1): 1}
        gate = home / "gate"
        sizes = {"0.25": 8_000, "0.5": 40_500, "0.75": None}
        names = []
        for share, memory_mib in sizes.items():
            text = f"{MARK} env > '{home}/env{share}'; {hold(gate, 'exit 5')}"
            memory = f"{memory_mib}M" if memory_mib else None
            names += await cluster.submit(cluster.shell(text, gpus=share, gpu_memory=memory))
        jobs = await cluster.running(names)
        for job, (share, memory_mib) in zip(jobs, sizes.items(), strict=True):
            task = job.tasks[0]
            assert (task.tier, task.enforcement) == ("mps-v2", Enforcement.ENFORCEMENT_SERVER)
            (uuid,) = task.gpu_uuids
            pipe = pipe_of(cluster, int(uuid[4:12], 16))
            env = environment_of(home / f"env{share}")
            assert env["CUDA_VISIBLE_DEVICES"] == uuid
            assert env["CUDA_MPS_PIPE_DIRECTORY"] == str(pipe)
            assert env["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == f"{float(share) * 100:g}"
            mib = memory_mib or USABLE_MIB * 3 // 4
            assert env["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == f"0={mib}M"
            assert task.gpu_memory_mib == mib
            assert cuda_mode(pipe) == "MPS"
        # The wall behind the jobs' own limits: the largest share on each card, in the whole GiB that can be read back.
        cards = [int(job.tasks[0].gpu_uuids[0][4:12], 16) for job in jobs]
        assert cards[0] == cards[1] != cards[2]
        assert ceiling(mps, pipe_of(cluster, cards[0])) == ("40G", "50.0")
        assert ceiling(mps, pipe_of(cluster, cards[2])) == ("105G", "75.0")

        agent = cluster.agents["n1"]
        agent.kill()
        agent.start()
        await cluster.settled("n1")
        (late,) = await cluster.submit(cluster.shell(hold(gate), gpus="0.25", gpu_memory="50G"))
        (job,) = await cluster.running([late])
        card = int(job.tasks[0].gpu_uuids[0][4:12], 16)
        assert card == cards[0]
        assert ceiling(mps, pipe_of(cluster, card)) == ("50G", "50.0")
        assert daemons(home) == before, "a daemon was not adopted"
        gate.touch()
        ended = await cluster.ended([*names, late])
        assert [ended[name].exit_code for name in names] == [5, 5, 5]


def test_a_share_has_its_card_pipe_percentage_and_limit_under_a_ceiling_that_was_read_back(home: Path) -> None:
    run(lambda: fenced_jobs(home))


# -- what refuses a launch


class Fault:
    """Something wrong with one card's MPS, and the words by which the refusal names it."""

    def __init__(self, name: str, words: str, spoil: Callable[[FakeMps, Path, str], None]) -> None:
        self.name = name
        self.words = words
        self.spoil = spoil


def switch(**switches: object) -> Callable[[FakeMps, Path, str], None]:
    def spoil(mps: FakeMps, pipe: Path, uuid: str) -> None:
        mps.switch(**{f"{name}__{uuid}": value for name, value in switches.items()})

    return spoil


FAULTS = [
    Fault("a socket that was cleaned away", "control: No such file", lambda _, pipe, __: (pipe / "control").unlink()),
    Fault("a socket that nobody listens on", "control: Connection refused", switch(control_deaf=1)),
    Fault("a directory of another mode", "somebody changed the owner, mode", lambda _, pipe, __: pipe.chmod(0o755)),
    Fault("a size that was misparsed", "was asked for, but", switch(misparse_mib=1)),
    Fault("dropped sessions", "dropped the session", switch(drop=1000)),
    Fault("a daemon that answers nothing", "answered nothing within", switch(silent=1)),
    Fault("a server in FAULT", "is not usable: FAULT", switch(server_status="FAULT")),
]
HEALTHY = len(FAULTS)


async def faults_refuse(home: Path) -> None:
    async with mps_cluster(home, cards=len(FAULTS) + 1) as (cluster, mps):
        for card, fault in enumerate(FAULTS):
            fault.spoil(mps, pipe_of(cluster, card), uuid_of(card))
        gate = home / "gate"
        # More than half of a card each, so that every card is asked.
        names = await cluster.submit(*(cluster.shell(hold(gate), gpus="0.6") for _ in range(len(FAULTS) + 1)))
        by_card = {}
        for name in names:
            job = await until(lambda name=name: placed(cluster, name), f"{name} has a card")
            by_card[int(job.tasks[0].gpu_uuids[0][4:12], 16)] = name
        await cluster.running([by_card[HEALTHY]])
        refused = await cluster.ended([by_card[card] for card in range(HEALTHY)])
        for card, fault in enumerate(FAULTS):
            job = refused[by_card[card]]
            print(f"{fault.name}: {job.detail}")
            assert (state_of(job), job.reason, job.exit_code) == ("FAILED", "FENCE_FAILED", 125), fault.name
            assert fault.words in job.detail, fault.name
            assert uuid_of(card) in job.detail
            assert attempt_state(job.tasks[0]) == "FAILED"
        assert cluster.witness.starts() == [attempt_of(by_card[HEALTHY], 1)], "a job ran without its fence"
        gate.touch()
        await cluster.ended([by_card[HEALTHY]])

        # Mended, and the agent started anew: every card fences again.
        mps.switch(**dict.fromkeys(tuple(mps.switches)))
        await cluster.agents["n1"].stop()
        cluster.agents["n1"].start()
        await cluster.settled("n1")
        again = await cluster.submit(*(cluster.shell(hold(gate), gpus="0.6") for _ in range(len(FAULTS) + 1)))
        for job in (await cluster.ended(again)).values():
            assert (state_of(job), job.tasks[0].tier) == ("SUCCEEDED", "mps-v2"), job


async def placed(cluster: LiveCluster, name: str) -> Job | None:
    job = await cluster.job(name)
    return job if job.tasks else None


def test_whatever_is_wrong_with_mps_refuses_the_launch_with_its_cause(home: Path) -> None:
    run(lambda: faults_refuse(home))


async def socket_out_of_reach(home: Path) -> None:
    """The socket is in order, and the job's own user could not get to it: CUDA would start without a limit."""
    async with mps_cluster(home, cards=1, single_user=False, containment="require") as (cluster, _):
        token = await cluster.admin.create_token("bob", Role.ROLE_USER, tenant="team", unix_user="nobody")
        cluster.use_token(token.secret)
        run_dir = cluster.node_home("n1") / "run"
        (fenced,) = await cluster.submit(cluster.shell(f"{MARK} mark start; mark $(id -un); exit 0", gpus="0.5"))
        job = (await cluster.ended([fenced]))[fenced]
        assert (state_of(job), job.tasks[0].tier) == ("SUCCEEDED", "mps-v2"), job
        assert "\nnobody " in cluster.witness.path.read_text()
        run_dir.chmod(0o700)
        (name,) = await cluster.submit(cluster.shell(f"{MARK} mark start", gpus="0.5"))
        job = (await cluster.ended([name]))[name]
        assert (state_of(job), job.reason) == ("FAILED", "FENCE_FAILED")
        assert "the job would run without MPS and without a limit" in job.detail
        assert f"{run_dir} (mode 0700" in job.detail
        assert cluster.witness.starts() == [attempt_of(fenced, 1)]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to run jobs as another user")
def test_a_socket_that_the_jobs_user_cannot_reach_refuses_the_launch(home: Path) -> None:
    run(lambda: socket_out_of_reach(home))
