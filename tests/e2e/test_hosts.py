"""A host as systemd runs it: restarts, upgrades and the way back under running jobs, and units that would harm them."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from live_cluster import LiveCluster, clean_environment, live_cluster, run, until
from standins import fake_systemctl, wheels
from witness import hold

from gpushare.client.messages import Node
from gpushare.host import places, templates
from gpushare.host.places import below

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: units run in control groups of their own"),
]
NODE = "n1"
OFFLINE = ("--no-index", "--no-deps")
SCRIPT = Path(__file__).parents[2] / "deploy" / "install.sh"


class Host:
    """A root directory that looks like a host with systemd, as node `NODE` of the cluster."""

    def __init__(self, cluster: LiveCluster) -> None:
        self.cluster = cluster
        self.root = cluster.node_home(NODE)
        self.root.mkdir(mode=0o711)
        self.unit = fake_systemctl.Unit(self.root, places.AGENT_UNIT)
        self.environ = clean_environment(
            {
                "PATH": f"{fake_systemctl.install(self.root)}:{os.environ['PATH']}",
                "PYTHON": sys.executable,
                "GPUSHARE_ROOT": str(self.root),
                "GPUSHARE_AGENT_JOIN_FILE": str(below(self.root, places.AGENT_JOIN)),
                "GPUSHARE_AGENT_STATE_DIR": str(self.root / "state"),
                "GPUSHARE_AGENT_RUN_DIR": str(self.root / "run/gpushare"),
                "GPUSHARE_AGENT_SIMULATE": "2xH100-80GB",
                "GPUSHARE_AGENT_SINGLE_USER": "true",
            }
        )

    async def do(self, *command: str | Path, code: int = 0, told: str = "") -> str:
        """Run it; what it said. `told` goes to its stdin."""
        done = await asyncio.to_thread(
            subprocess.run, [str(word) for word in command], input=told, capture_output=True, text=True, timeout=120,
            env=self.environ,
        )  # fmt: skip
        said = str(done.stdout + done.stderr)
        assert done.returncode == code, f"{command} ended with {done.returncode}: {said}\n{self.log()[-3000:]}"
        return said

    async def gpushare(self, *arguments: str | Path, code: int = 0) -> str:
        """The command line of the version that the host runs."""
        words = (*arguments, "--root", self.root) if "--" not in arguments else self._in_front(arguments)
        return await self.do(below(self.root, places.CURRENT) / "bin/gpushare", *words, code=code)

    def _in_front(self, arguments: tuple[str | Path, ...]) -> tuple[str | Path, ...]:
        at = arguments.index("--")
        return (*arguments[:at], "--root", self.root, *arguments[at:])

    async def upgrade(self, wheel: Path, code: int = 0) -> str:
        """`gpushare host upgrade`, without network."""
        return await self.gpushare("host", "upgrade", wheel, "--", *OFFLINE, code=code)

    async def systemctl(self, *arguments: str) -> str:
        return await self.do("systemctl", *arguments)

    async def runs(self, version: str) -> Node:
        """The node, once the agent that is up now, of this version, is in sync."""

        async def found() -> Node | None:
            node = await self.cluster.node(NODE)
            return node if node.ready and node.agent_version == version and self.unit.pid else None

        return await until(found, f"the agent of version {version} is ready: {self.log()[-2000:]}")

    def log(self) -> str:
        return self.unit.log_file.read_text(errors="replace") if self.unit.log_file.exists() else ""

    async def join_line(self) -> str:
        return (await self.cluster.admin.create_join_token(NODE)).join + "\n"


@asynccontextmanager
async def a_host(home: Path) -> AsyncIterator[Host]:
    """A scheduler, and a host on which nothing is installed yet."""
    try:
        async with live_cluster(home) as cluster:
            host = Host(cluster)
            try:
                yield host
                await cluster.end_jobs()
                if host.unit.pid:
                    await host.systemctl("stop", places.AGENT_UNIT)
            except BaseException:
                print(host.log()[-4000:])
                raise
            finally:
                if host.unit.pid:
                    os.kill(host.unit.pid, 9)
    finally:
        # All processes of the cluster have ended, whatever became of the test.
        fake_systemctl.Unit(home / NODE, places.AGENT_UNIT).remove_groups()


@pytest.mark.prove
@pytest.mark.timeout(400)
def test_jobs_do_not_notice_restart_upgrade_rollback_and_replaced_files(tmp_path: Path) -> None:
    async def scene() -> None:
        async with a_host(tmp_path / "c") as host:
            host.environ["PYTHONPATH"] = str(wheels.dependencies(tmp_path / "deps"))
            one, two = (wheels.make_wheel(tmp_path, version) for version in ("1.0.0", "2.0.0"))
            mine = Path(sys.executable).parent / "gpushare"
            await host.do(mine, "host", "upgrade", one, "--root", host.root, "--", *OFFLINE)
            program = below(host.root, places.CURRENT) / "bin/gpushare-agent"
            await host.do(program, "install", "--root", host.root, "--join", "-", "--now", told=await host.join_line())
            node = await host.runs("1.0.0")
            assert list(node.warnings) == []

            gate = host.cluster.home / "gate"
            specs = [host.cluster.shell(hold(gate, f"exit {code}"), gpus="0.25") for code in range(8)]
            names = await host.cluster.submit(*specs)
            begun = {job.name: job.tasks[0] for job in await host.cluster.running(names)}
            lives = {attempt: life.pid for attempt, life in host.cluster.witness.lives().items()}
            for attempt in lives:
                shim = await host.cluster.shim_pid(NODE, attempt)
                assert places.AGENT_UNIT not in Path(f"/proc/{shim}/cgroup").read_text()

            first = host.unit.pid
            await host.systemctl("restart", places.AGENT_UNIT)
            assert host.unit.pid != first
            await host.runs("1.0.0")

            assert "current is 2.0.0, was 1.0.0" in await host.upgrade(two)
            await host.runs("2.0.0")
            # Pinned to its own version: what a later switch of the link puts in its place is nothing to it.
            assert b"/versions/2.0.0/" in Path(f"/proc/{host.unit.pid}/cmdline").read_bytes()

            (daemon,) = below(host.root, places.INSTALL_DIR).glob("versions/1.0.0/lib/*/*/gpushare_agent/daemon.py")
            whole = daemon.read_text()
            daemon.write_text(whole.replace("await agent.recover()", 'raise OSError("made not to start")'))
            said = await host.gpushare("host", "rollback", code=1)
            assert "error: UPGRADE_FAILED: gpushare-agent.service did not come up" in said
            assert "2.0.0 is back" in said
            assert "made not to start" in host.log()
            await host.runs("2.0.0")

            daemon.write_text(whole)
            await host.gpushare("host", "rollback")
            await host.runs("1.0.0")
            listed = [line.split()[:2] for line in (await host.gpushare("host", "versions")).splitlines()[1:]]
            assert listed[:2] == [["1.0.0", "current"], ["2.0.0", "previous"]]
            await host.gpushare("host", "rollback", "2.0.0")
            await host.runs("2.0.0")

            # The files that the jobs' shims came from.
            shutil.rmtree(below(host.root, f"{places.INSTALL_DIR}/versions/1.0.0"))
            assert {attempt: life.pid for attempt, life in host.cluster.witness.lives().items()} == lives
            gate.touch()
            ended = await host.cluster.ended(names)
            assert [ended[name].tasks[0].exit_code for name in names] == list(range(8))
            assert {name: job.tasks[0].attempt_id for name, job in ended.items()} == {
                name: task.attempt_id for name, task in begun.items()
            }

            # What a version does not accept is found before it runs.
            below(host.root, places.AGENT_CONFIG).write_text("no_such_key = 1\n")
            said = await host.upgrade(one, code=1)
            assert "version 1.0.0 does not run on this host" in said
            assert "no_such_key" in said
            assert (await host.runs("2.0.0")).ready

    run(scene, within_s=380)


@pytest.mark.parametrize(
    ("lines", "sentences"),
    [
        ({}, []),
        ({"KillMode=process": ""}, ["KillMode=control-group: stopping or restarting it kills running jobs"]),
        ({"KillMode=process": "KillMode=mixed", "Delegate=yes": ""}, ["KillMode=mixed", "Delegate=no"]),
    ],
)
def test_a_unit_that_would_harm_jobs_is_warned_of(tmp_path: Path, lines: dict[str, str], sentences: list[str]) -> None:
    async def scene() -> None:
        async with a_host(tmp_path / "c") as host:
            agent = Path(sys.executable).parent / "gpushare-agent"
            await host.do(agent, "install", "--root", host.root, "--join", "-", told=await host.join_line())
            text = templates.agent_unit(str(agent))
            for old, new in lines.items():
                assert old in text
                text = text.replace(old, new)
            host.unit.file.write_text(text)
            await host.systemctl("enable", "--now", places.AGENT_UNIT)

            async def ready() -> Node | None:
                node = await host.cluster.node(NODE)
                return node if node.ready else None

            warnings = list((await until(ready, "the node is ready")).warnings)
            assert len(warnings) == len(sentences)
            for warning, words in zip(warnings, sentences, strict=True):
                assert words in warning
                assert words in host.log()

            said = await host.do(agent, "uninstall", "--root", host.root)
            assert "its jobs run on" in said
            assert not host.unit.pid
            assert not host.unit.file.exists()
            assert below(host.root, places.AGENT_CONFIG).exists()

    run(scene)


@pytest.mark.prove
@pytest.mark.timeout(600)
def test_a_bare_host_gets_its_first_version_by_one_command(tmp_path: Path) -> None:
    root = tmp_path / "root"
    environ = clean_environment(
        {
            "PYTHON": sys.executable,
            "PYTHONPATH": str(wheels.dependencies(tmp_path / "deps")),
            "GPUSHARE_ROOT": str(root),
        }
    )
    command = ["sh", str(SCRIPT), str(wheels.make_wheel(tmp_path, "1.0.0")), *OFFLINE]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert os.readlink(root / "usr/local/bin/gpushare") == "/opt/gpushare/current/bin/gpushare"
    program = below(root, places.CURRENT) / "bin/gpushare"
    assert subprocess.check_output([program, "--version"], env=environ, text=True) == "gpushare 1.0.0\n"
    refused = subprocess.run(["sh", str(SCRIPT)], env=environ, capture_output=True, text=True, timeout=60)
    assert (refused.returncode, refused.stderr[:6]) == (2, "usage:")
