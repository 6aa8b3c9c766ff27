"""`gpushare up`: jobs outlive it, dead daemons come back, and nobody gets in its way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from leaks import processes_of, read_of
from upcluster import UpCluster

from gpushare.client.settings import ConnectionSettings, read_contexts, save_context

MakeUp = Callable[..., UpCluster]


def daemons(cluster: UpCluster, module: str) -> list[int]:
    """Pids of the daemons of `cluster` that run `module`."""
    found = []
    for pid in processes_of(cluster.home):
        words = read_of(pid, "cmdline").split(b"\0")
        if module.encode() in words and b"gpushare.cli.tether" not in words:
            found.append(pid)
    return found


def test_jobs_go_on_when_it_stops_and_are_adopted_when_it_starts_again(make_up: MakeUp) -> None:
    up = make_up()
    up.start()
    assert up.said().startswith("jobs run as ")
    up.ok("submit", "--gpus", "0.5", "--name", "long", "--", "sh", "-c", "echo $$; sleep 4; echo end; exit 5")
    running = up.wait_for("long", "RUNNING")
    assert up.stop() == 0
    up.until(lambda: not daemons(up, "gpushare_agent.main"), "the agent is gone")
    pid = int(output_of(up))
    assert Path(f"/proc/{pid}").exists(), "the job runs on without any daemon"
    up.start()
    assert up.cli("wait", "long").code == 5
    ended = up.job("long")
    assert ended["startTime"] == running["startTime"]
    assert [task["number"] for task in ended["tasks"]] == [1]
    assert up.ok("logs", "long").out == f"{pid}\nend\n"
    assert up.stop() == 0


def output_of(up: UpCluster) -> str:
    """What the one job has printed so far, read where its agent keeps it."""
    files: list[Path] = []

    def printed() -> bool:
        files[:] = [path for path in up.state_dir.rglob("*") if path.is_file() and is_output(path)]
        return bool(files)

    up.until(printed, "the job's output is on the disk")
    return files[0].read_text()


def is_output(path: Path) -> bool:
    return "stdout" in path.name and path.stat().st_size > 0


def test_only_one_at_a_time_on_a_directory_and_only_in_its_shape(make_up: MakeUp) -> None:
    up = make_up()
    up.start()
    second = up.cli("up", "--simulate", up.shape, "--state-dir", str(up.state_dir), "--listen", "127.0.0.1:0")
    assert second.code == 1
    assert "Another `gpushare up`" in second.err
    assert up.process is not None
    assert str(up.process.pid) in second.err
    assert up.stop() == 0
    other = up.cli("up", "--simulate", "2x1xL40S", "--state-dir", str(up.state_dir), "--listen", "127.0.0.1:0")
    assert other.code == 1
    assert f"--simulate {up.shape}" in other.err


def test_a_daemon_that_dies_is_started_again_and_no_job_notices(make_up: MakeUp) -> None:
    up = make_up()
    up.start()
    ran = up.spawn("run", "--gpus", "0.5", "--name", "long", "--", "sh", "-c", "echo begin; sleep 5; echo end; exit 6")
    assert ran.stdout is not None
    assert ran.stdout.readline() == "begin\n"
    for module in ("gpushare.scheduler.main", "gpushare_agent.main"):
        (pid,) = daemons(up, module)
        os.kill(pid, signal.SIGKILL)
        up.until(lambda module=module, pid=pid: daemons(up, module) not in ([], [pid]), f"{module} is back")
    out, err = ran.communicate(timeout=60)
    assert (ran.returncode, out) == (6, "end\n"), err
    assert [task["number"] for task in up.job("long")["tasks"]] == [1]
    assert "was started again" in up.said()
    assert up.stop() == 0


def test_stop_jobs_ends_them_first_and_the_context_of_before_is_current_again(make_up: MakeUp) -> None:
    up = make_up()
    contexts = up.home / "admin.toml"
    save_context(contexts, "lab", ConnectionSettings("lab.example:7480", "gps_a"))
    up.start("--stop-jobs")
    up.ok("submit", "--gpus", "0.5", "--name", "long", "--", "sleep", "300")
    up.wait_for("long", "RUNNING")
    assert up.stop() == 0
    up.until(lambda: not processes_of(up.home), "nothing is left")
    assert read_contexts(contexts).current == "lab"
    up.start()
    assert up.job("long")["state"] == "JOB_STATE_CANCELLED"
    # Another `up` has made the name its own.
    save_context(contexts, "local", ConnectionSettings("127.0.0.1:1", "gps_b"))
    assert up.stop() == 0
    assert read_contexts(contexts).current == "local"


def test_a_killed_up_leaves_no_daemon_and_its_jobs(make_up: MakeUp) -> None:
    up = make_up()
    up.start()
    up.ok("submit", "--gpus", "0.5", "--name", "long", "--", "sh", "-c", "sleep 5; exit 4")
    up.wait_for("long", "RUNNING")
    assert up.stop(signal.SIGKILL) == -signal.SIGKILL
    for module in ("gpushare.scheduler.main", "gpushare_agent.main"):
        up.until(lambda module=module: not daemons(up, module), f"{module} is gone")
    up.start()
    assert up.cli("wait", "long").code == 4
    assert up.stop() == 0


def test_what_cannot_start_says_why(make_up: MakeUp, tmp_path: Path) -> None:
    up = make_up()
    unknown = up.cli("up", "--simulate", "1x1xFOO", "--state-dir", str(tmp_path / "a"), "--listen", "127.0.0.1:0")
    assert unknown.code == 1
    assert "'FOO'" in unknown.err
    assert "H100-80GB" in unknown.err
    up.start()
    port = up.ok("nodes").out and up.said().split("serves at ")[1].split()[0]
    taken = up.cli("up", "--simulate", "1x1xL40S", "--state-dir", str(tmp_path / "b"), "--listen", port)
    assert taken.code == 1
    assert port in taken.err
    for words in (["--simulate", "L40S"], ["--simulate", "0x1xL40S"], ["--simulate", "1_0x1xL40S"]):
        assert up.cli("up", *words, "--state-dir", str(tmp_path / "c")).code == 2
    assert not (tmp_path / "c").exists()
    assert up.stop() == 0


# An ordinary user who may read everything, so that an interpreter in root's home can be run.
AS_NOBODY = (
    *["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"],
    *["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", "--"],
)
READ_ONLY_CGROUPS = (
    "unshare",
    "--mount",
    "sh",
    "-c",
    'for m in $(awk \'$3 ~ /cgroup/ {print $2}\' /proc/mounts); do mount -o remount,bind,ro "$m"; done; exec "$@"',
    "sh",
)


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that everybody may enter, unlike those below `tmp_path`."""
    with tempfile.TemporaryDirectory(prefix="gpushare-test-") as path:
        Path(path).chmod(0o755)
        yield Path(path)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else and to mount")
@pytest.mark.parametrize("prefix", [AS_NOBODY, READ_ONLY_CGROUPS], ids=["ordinary user", "read-only control groups"])
def test_it_works_without_control_groups_too(make_up: MakeUp, prefix: tuple[str, ...], open_directory: Path) -> None:
    if shutil.which(prefix[0]) is None or subprocess.run([*prefix, "true"], capture_output=True).returncode != 0:
        pytest.skip(f"{prefix[0]} cannot do that here")
    up = make_up(prefix=prefix, home=open_directory / "up")
    if prefix is AS_NOBODY:
        for path in (up.home, up.home / "work"):
            os.chown(path, 65534, 65534)
    up.start("--stop-jobs")
    assert "containment weak" in up.said()
    assert up.cli("run", "--gpus", "0.25", "--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES; exit 3").code == 3
    forks = "(trap '' TERM; sleep 300) & echo $!; wait"
    ran = up.spawn("run", "--gpus", "0.25", "--grace", "1s", "--name", "forks", "--", "sh", "-c", forks)
    assert ran.stdout is not None
    pid = int(ran.stdout.readline())
    ran.send_signal(signal.SIGINT)
    ran.communicate(timeout=60)
    assert up.job("forks")["state"] == "JOB_STATE_CANCELLED"
    assert not Path(f"/proc/{pid}").exists(), "what ignores SIGTERM is gone after its grace"
    assert up.stop() == 0
