"""Sitting at a job: a shell in a terminal, coming back to it, commands beside it, input through pipes, its ports."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tmux_seat import Seat, needs_tmux, seat
from upcluster import CLI, UpCluster

GPUSHARE = f"{sys.executable} -m gpushare.cli.main"
is_root = os.geteuid() == 0


@pytest.fixture
def terminal(up_cluster: UpCluster, tmp_path: Path) -> Iterator[Seat]:
    with seat(tmp_path, up_cluster.environment()) as found:
        yield found


def begin_shell(terminal: Seat) -> str:
    """A shell as a job, at its prompt; the job's id."""
    terminal.run(f"{GPUSHARE} shell --gpus 0.1 --grace 1s --env ENV= --export PATH,TERM")
    job = terminal.sees(r"^job (\d+); to come back: gpushare attach \1")[1]
    terminal.run("PS1='in-job> '")
    terminal.sees(r"^in-job> *$")
    return job


@needs_tmux
def test_a_shell_is_a_terminal_like_any_other(up_cluster: UpCluster, terminal: Seat) -> None:
    job = begin_shell(terminal)
    terminal.run("tput colors; stty size; echo $GPUSHARE_JOB_ID/$CUDA_VISIBLE_DEVICES")
    terminal.sees(rf"^256\n30 100\n{job}/GPU-")
    # Ctrl-C is for what runs in the shell, and for neither the shell nor the job.
    terminal.run("sleep 1000; echo slept-$?")
    terminal.type("", "C-c")
    terminal.sees(r"\^C")
    terminal.run("echo alive-$((20+1))")
    terminal.sees(r"^alive-21")
    assert "slept-" not in re.sub(r"echo slept.*", "", terminal.screen())
    terminal.tmux("resize-window", "-x", "91", "-y", "27")
    terminal.run("stty size")
    terminal.sees(r"^27 91")
    # Job control.
    terminal.run("sleep 999 &")
    terminal.run("jobs")
    terminal.sees(r"^\[1\]\+  Running +sleep 999")
    terminal.run("fg")
    terminal.sees(r"^sleep 999$")
    terminal.type("", "C-z")
    terminal.sees(r"^\[1\]\+  Stopped +sleep 999")
    terminal.run("bg; wait; exit 7")
    terminal.sees(r"^\[1\]\+ sleep 999 &")
    terminal.type("", "C-c")
    terminal.run("kill %1; wait; exit 7")
    terminal.sees(r"^seat\$ *$")
    terminal.run("echo code-$?")
    terminal.sees(r"^code-7")
    # The person's terminal is as it was.
    terminal.run("stty -a | grep -o ' icanon'")
    terminal.sees(r"^ icanon")
    assert up_cluster.job(job)["exitCode"] == 7


@needs_tmux
def test_a_lost_client_leaves_the_job_and_attach_comes_back_to_it(up_cluster: UpCluster, terminal: Seat) -> None:
    job = begin_shell(terminal)
    terminal.run("mine=kept; echo before-$((40+1))")
    terminal.sees(r"^before-41")
    [client] = clients_of(up_cluster, "shell")
    os.kill(client, signal.SIGKILL)
    terminal.sees(r"Killed")
    assert up_cluster.job(job)["state"] == "JOB_STATE_RUNNING"
    terminal.run("reset; clear")
    terminal.run(f"{GPUSHARE} attach {job}")
    terminal.sees(r"^before-41")
    terminal.run("echo after-$mine")
    terminal.sees(r"^after-kept")
    # Leaving on purpose is the same; a tilde elsewhere, or two, are the job's.
    terminal.run("echo ~.; echo x~~y")
    terminal.sees(r"^x~~y")
    terminal.type("", "Enter")
    terminal.type("~.")
    terminal.sees(rf"^note: left; job {job} goes on \(gpushare attach {job}\)")
    terminal.run("stty -a | grep -o ' icanon'")
    terminal.sees(r"^ icanon")
    terminal.run(f"{GPUSHARE} attach {job}")
    terminal.run("exit")
    up_cluster.wait_for(job, "SUCCEEDED", "FAILED")


def clients_of(cluster: UpCluster, command: str) -> list[int]:
    """Processes of `gpushare COMMAND` that use this cluster's settings."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            ours = f"GPUSHARE_CONFIG={cluster.home}".encode() in (entry / "environ").read_bytes()
            if ours and b"gpushare.cli.main" in words and command.encode() in words:
                found.append(int(entry.name))
    return found


@needs_tmux
def test_keys_come_back_as_fast_as_a_terminal_needs(up_cluster: UpCluster, terminal: Seat) -> None:
    job = begin_shell(terminal)
    terminal.run("stty -echo -icanon min 1; python3 -u -c 'import os\nwhile True: os.write(1, os.read(0, 1) * 2)'")
    time.sleep(1)
    # Measured where the person sits, machinery of the test included; one quiet second first, so that nothing is warm.
    took = []
    for key in "abcde":
        time.sleep(0.3)
        began_s = time.monotonic()
        terminal.type(key)
        terminal.sees(key * 2)
        took.append(time.monotonic() - began_s)
    assert sorted(took)[len(took) // 2] < 0.5, took
    up_cluster.ok("cancel", job)
    up_cluster.wait_for(job, "CANCELLED")


# -- beside the task


@pytest.fixture
def job(up_cluster: UpCluster) -> Iterator[str]:
    """A job that says where it runs and then waits."""
    words = ["submit", "--gpus", "0.1", "--host-memory", "256M", "--parsable", "--", "sh", "-c"]
    found = up_cluster.ok(*words, "echo $$ >&2; cat /proc/self/cgroup; ulimit -a; pwd; exec sleep 1000").out.strip()
    up_cluster.wait_for(found, "RUNNING")
    yield found
    up_cluster.ok("cancel", found)
    up_cluster.wait_for(found, "CANCELLED", "FAILED")


def test_exec_is_where_the_task_is(up_cluster: UpCluster, job: str) -> None:
    told = up_cluster.ok("exec", job, "--", "sh", "-c", "cat /proc/self/cgroup; ulimit -a; pwd")
    assert told.out == up_cluster.ok("logs", job).out
    shows = "cat /proc/$1/environ | tr '\\0' '\\n' | grep -v -e GPUSHARE_PRIVATE_DIR -e ^TERM= | sort"
    own = up_cluster.ok("exec", job, "--", "sh", "-c", shows, "sh", "self").out
    pid = up_cluster.ok("logs", job).err.strip()
    assert own == up_cluster.ok("exec", job, "--", "sh", "-c", shows, "sh", pid).out
    assert f"GPUSHARE_JOB_ID={job}\n" in own
    assert "CUDA_VISIBLE_DEVICES=GPU-" in own


def test_exec_keeps_codes_and_streams_as_they_are(up_cluster: UpCluster, job: str) -> None:
    done = up_cluster.cli("exec", job, "--", "sh", "-c", "echo out; echo err >&2; exit 9")
    assert done == (9, "out\n", "err\n")
    assert up_cluster.cli("exec", job, "--", "sh", "-c", "kill -9 $$").code == 137
    assert up_cluster.cli("exec", job, "--", "no-such-program").code == 127
    assert up_cluster.cli("exec", job, "--", "/etc/passwd").code == 126
    refused = up_cluster.cli("exec", "999999", "--", "true")
    assert refused.code == 125
    assert refused.err.startswith("error: NOT_FOUND: ")
    content = bytes(range(256)) * 16 * 1024  # 4 MiB
    copied = subprocess.run(
        [*CLI, "exec", job, "--", "cat"], input=content, env=up_cluster.environment(), capture_output=True, timeout=60
    )
    assert copied.stdout == content


@pytest.mark.skipif(not is_root, reason="needs root: limits of host memory are control groups'")
def test_the_memory_limit_holds_for_exec(up_cluster: UpCluster, job: str) -> None:
    takes = "x = bytearray(600 << 20); print('got it')"
    done = up_cluster.cli("exec", job, "--", sys.executable, "-c", takes)
    assert done.code == 137
    assert "got it" not in done.out


def test_exec_ends_with_its_client_and_with_the_job(up_cluster: UpCluster, job: str) -> None:
    process = up_cluster.spawn("exec", job, "--", "sh", "-c", "echo $$; exec sleep 4321", stdin=subprocess.PIPE)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert Path(f"/proc/{pid}/comm").read_text().strip() in ("sh", "sleep")
    process.kill()
    process.communicate(timeout=30)
    up_cluster.until(lambda: not Path(f"/proc/{pid}").exists(), "the command has ended with its client")
    assert up_cluster.job(job)["state"] == "JOB_STATE_RUNNING"

    process = up_cluster.spawn("exec", job, "--", "sh", "-c", "echo $$; trap '' TERM HUP; sleep 4321; sleep 4321")
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    up_cluster.ok("cancel", job)
    up_cluster.wait_for(job, "CANCELLED")
    assert not Path(f"/proc/{pid}").exists()
    process.communicate(timeout=30)
    assert process.returncode in (125, 137)


def test_so_many_commands_at_once_and_no_more(up_cluster: UpCluster, job: str) -> None:
    held = [up_cluster.spawn("exec", job, "--", "sh", "-c", "echo on; exec sleep 4321") for _ in range(16)]
    try:
        for process in held:
            assert process.stdout is not None
            assert process.stdout.readline() == "on\n"
        refused = up_cluster.cli("exec", job, "--", "true")
        assert refused.code == 125
        assert refused.err.startswith("error: BUSY: ")
        held[0].kill()
        up_cluster.until(lambda: up_cluster.cli("exec", job, "--", "true").code == 0, "a place is free again")
    finally:
        for process in held:
            process.kill()
            process.communicate(timeout=30)


# -- input through a pipe


def test_run_takes_its_input_from_a_pipe_to_its_end(up_cluster: UpCluster) -> None:
    content = os.urandom(3 << 20)
    command = [*CLI, "run", "-i", "--gpus", "0", "--parsable", "--", "cat"]
    done = subprocess.run(command, input=content, env=up_cluster.environment(), capture_output=True, timeout=90)
    assert done.returncode == 0, done.stderr
    assert done.stdout == content
    # Without -i it has none, as ever.
    assert up_cluster.ok("run", "--gpus", "0", "--", "cat", input="unread").out == ""


def test_another_client_can_give_the_input_and_end_it(up_cluster: UpCluster) -> None:
    first = up_cluster.spawn("run", "-i", "--gpus", "0", "--parsable", "--", "cat", stdin=subprocess.PIPE)
    assert first.stderr is not None
    job = first.stderr.readline().strip()
    up_cluster.wait_for(job, "RUNNING")
    first.kill()
    first.communicate(timeout=30)
    done = subprocess.run(
        [*CLI, "attach", job], input=b"from another\n", env=up_cluster.environment(), capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, b"from another\n"), done.stderr


# -- ports


@contextlib.contextmanager
def forwarding(cluster: UpCluster, job: str, port: int) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    process = cluster.spawn("port-forward", job, f"{port}:0")
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(rf"(127\.0\.0\.1:\d+) leads to port {port} of job {job}\n", line)
        assert found is not None, (line, process.stderr.read() if process.stderr and not line else "")
        yield found[1], process
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize("bind", ["127.0.0.1", "0.0.0.0", "::1"])
def test_a_page_that_the_job_serves(up_cluster: UpCluster, tmp_path: Path, bind: str) -> None:
    content = os.urandom(1 << 20)
    (tmp_path / "page").write_bytes(content)
    tmp_path.chmod(0o755)
    port = free_port()
    serve = [sys.executable, "-m", "http.server", "--bind", bind, "--directory", str(tmp_path), str(port)]
    job = up_cluster.ok("submit", "--gpus", "0", "--parsable", "--", *serve).out.strip()
    up_cluster.wait_for(job, "RUNNING")
    with forwarding(up_cluster, job, port) as (address, process):

        def served() -> bool:
            try:
                with urllib.request.urlopen(f"http://{address}/page", timeout=30) as answer:
                    return bool(answer.read() == content)
            except (urllib.error.URLError, ConnectionError):
                return False  # its server is not up yet

        up_cluster.until(served, "the page")
        up_cluster.ok("cancel", job)
        up_cluster.until(lambda: process.poll() is not None, "it ends with the job")


def test_a_port_of_somebody_else_is_not_reached_through_a_job(up_cluster: UpCluster, job: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        foreign.settimeout(0.0)
        port = foreign.getsockname()[1]
        with forwarding(up_cluster, job, port) as (address, process):
            host, _, local = address.partition(":")
            with socket.create_connection((host, int(local)), timeout=30) as client:
                assert client.recv(1) == b""
            with pytest.raises(BlockingIOError):
                foreign.accept()
            assert process.stderr is not None
            assert f"PORT_CLOSED: Node node-1: nothing of this task listens on port {port}" in process.stderr.readline()


def test_other_machines_are_let_in_only_on_demand(up_cluster: UpCluster, job: str) -> None:
    refused = up_cluster.cli("port-forward", job, "80:0", "--address", "0.0.0.0")
    assert refused.code == 2
    assert "--allow-remote" in refused.err
