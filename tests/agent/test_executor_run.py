"""What an attempt's program sees and how its end is told, on real shims and processes."""

from __future__ import annotations

import json
import os
import signal
import stat
from pathlib import Path

import pytest
from executor_kit import (
    BOTH_KINDS,
    NOBODY,
    eventually,
    host,
    is_root,
    needs_groups,
    needs_root,
    open_directory,
    python,
    run,
    shell,
    spec,
)

from gpushare.reasons import Reason
from gpushare_agent import unixuser
from gpushare_agent.launchspec import LaunchRefused, UnixUser

ENDS = [
    (("true",), "SUCCEEDED", Reason.COMPLETED, 0, None),
    (("sh", "-c", "exit 3"), "FAILED", Reason.EXIT_CODE, 3, None),
    (("sh", "-c", "exit 127"), "FAILED", Reason.EXIT_CODE, 127, None),
    (("sh", "-c", "kill -SEGV $$"), "FAILED", Reason.SIGNALLED, None, signal.SIGSEGV),
    (("sh", "-c", "kill -KILL $$"), "FAILED", Reason.SIGNALLED, None, signal.SIGKILL),
    (("no-such-program-anywhere",), "FAILED", Reason.EXEC, 127, None),
    (("/no/such/program",), "FAILED", Reason.EXEC, 127, None),
    (("/etc",), "FAILED", Reason.EXEC, 126, None),
    (("/etc/passwd",), "FAILED", Reason.EXEC, 126, None),
    (("/etc/passwd/x",), "FAILED", Reason.EXEC, 127, None),
    (("",), "FAILED", Reason.EXEC, 126, None),
]


@pytest.mark.parametrize("weak", BOTH_KINDS)
def test_every_way_to_end_is_told_truly(tmp_path: Path, weak: bool) -> None:
    async def body() -> None:
        async with host(tmp_path, weak) as here:
            for number, (argv, *_) in enumerate(ENDS):
                await here.executor.launch(spec(f"t.{number}.0.1", *argv))
            for number, (argv, state, reason, code, sent) in enumerate(ENDS):
                found = await here.ended(f"t.{number}.0.1")
                got = (found.state, found.reason, found.exit_code, found.signal)
                assert got == (state, reason, code, sent), argv
                assert found.ended_ms is not None
                assert (found.started_ms is None) == (reason is Reason.EXEC)

    run(body())


SCRIPTS = [
    ("runs, with its arguments", b"#!/bin/sh\necho $0 $1; exit 5\n", "FAILED", Reason.EXIT_CODE, 5, ""),
    ("Windows line ends", b"#!/bin/sh\r\nexit 0\r\n", "FAILED", Reason.EXEC, 126, "CRLF"),
    ("interpreter missing", b"#!/no/such/interpreter\n", "FAILED", Reason.EXEC, 126, "/no/such/interpreter"),
    ("no first line", b"echo hello\n", "FAILED", Reason.EXEC, 126, "#!"),
    ("binary rubbish", bytes(range(256)) * 8, "FAILED", Reason.EXEC, 126, "#!"),
    ("truncated program", b"\x7fELF\x02\x01\x01", "FAILED", Reason.EXEC, 126, "#!"),
    ("empty", b"", "FAILED", Reason.EXEC, 126, "#!"),
]


@pytest.mark.parametrize(("name", "script", "state", "reason", "code", "words"), SCRIPTS, ids=[s[0] for s in SCRIPTS])
def test_a_stored_script(
    tmp_path: Path, name: str, script: bytes, state: str, reason: Reason, code: int, words: str
) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            found = await here.result(spec("t.1.0.1", "some dir/train.sh", "one", script=script))
            assert (found.state, found.reason, found.exit_code) == (state, reason, code)
            assert words in found.detail
            if code == 5:
                assert here.stdout("t.1.0.1").endswith("/train.sh one\n")
            await here.executor.forget("t.1.0.1")
            assert not list((tmp_path / "scripts").iterdir())

    run(body())


def test_a_missing_interpreter_of_a_file_on_disk_is_not_taken_for_a_missing_file(tmp_path: Path) -> None:
    program = tmp_path / "tool"
    program.write_text("#!/no/python\n")
    program.chmod(0o755)

    async def body() -> None:
        async with host(tmp_path / "state", weak=True) as here:
            found = await here.result(spec("t.1.0.1", "tool", env={"PATH": f"/nowhere:{tmp_path}:/bin"}))
            assert (found.reason, found.exit_code) == (Reason.EXEC, 126)
            assert "/no/python" in found.detail

    run(body())


@pytest.mark.parametrize("weak", BOTH_KINDS)
def test_the_program_gets_a_clean_process(tmp_path: Path, weak: bool) -> None:
    """Three descriptors, no signal ignored, its own session, no core files, no way to more privilege."""
    code = """
import json, os, resource, signal
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
print(json.dumps({
    "fds": sorted(int(n) for n in os.listdir("/proc/self/fd")),
    "ignored": int(status["SigIgn"], 16) & ~(1 << 12 | 1 << 24 | 1 << 31 | 1 << 32),
    "blocked": int(status["SigBlk"], 16),
    "no_new_privs": status["NoNewPrivs"].strip(),
    "core": resource.getrlimit(resource.RLIMIT_CORE),
    "leader": os.getsid(0) == os.getpid(),
    "umask": os.umask(0),
    "stdin": os.readlink("/proc/self/fd/0"),
    "cwd": os.getcwd(),
    "env": dict(os.environ),
    "oom": int(open("/proc/self/oom_score_adj").read()),
}))
"""

    async def body() -> None:
        async with host(tmp_path, weak) as here:
            found = await here.result(python("t.1.0.1", code, cwd="/usr", env={"A": "b", "LD_PRELOAD": ""}))
            assert found.state == "SUCCEEDED", here.stderr("t.1.0.1")
            seen = json.loads(here.stdout("t.1.0.1"))
            # the fourth is the directory that the listing itself holds open
            assert seen["fds"] == [0, 1, 2, 3]
            assert (seen["ignored"], seen["blocked"]) == (0, 0)
            assert seen["no_new_privs"] == "1"
            assert seen["core"] == [0, 0]
            assert seen["leader"] is True
            assert seen["umask"] == 0o022
            assert seen["stdin"] == "/dev/null"
            assert seen["cwd"] == "/usr"
            assert seen["oom"] >= 0
            assert seen["env"].pop("GPUSHARE_ATTEMPT_TAG") == f"{here.instance}/t.1.0.1"
            assert seen["env"].pop("LC_CTYPE", "") in ("", "C.UTF-8")
            assert set(seen["env"]) == {"A", "PATH", "LANG", "LD_PRELOAD"}

    run(body())


@pytest.mark.parametrize(
    ("cwd", "number"), [("/no/such/directory", "No such file"), ("/etc/passwd", "Not a directory"), ("relative", "")]
)
def test_a_directory_that_cannot_be_entered_is_named(tmp_path: Path, cwd: str, number: str) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            found = await here.result(spec("t.1.0.1", "true", cwd=cwd))
            assert (found.state, found.reason, found.exit_code) == ("FAILED", Reason.WORKDIR, None)
            assert cwd in found.detail
            assert number in found.detail

    run(body())


def test_an_argument_that_no_program_can_get_is_a_failed_exec(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            for number, bad in enumerate((("true", "a\0b"), ("true", "x" * (3 << 20)))):
                found = await here.result(spec(f"t.{number}.0.1", *bad))
                assert (found.reason, found.exit_code) == (Reason.EXEC, 126)

    run(body())


def test_refusals_change_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            for bad in (
                spec("../up", "true"),
                spec("UPPER", "true"),
                spec("a/b", "true"),
                spec("", "true"),
                spec("x" * 201, "true"),
                spec("a\n", "true"),
                spec("t.1.0.1"),
                spec("t.1.0.1", "true", denied_devices=((195, 0),)),
                spec("t.1.0.1", "true", on_disconnect="stop_and_requeue"),
            ):
                with pytest.raises(LaunchRefused):
                    await here.executor.launch(bad)
            assert here.executor.statuses() == {}
            assert not list((tmp_path / "attempts").iterdir())
            assert here.seen == []

    run(body())


def test_a_fence_that_fails_refuses_the_launch_and_leaves_nothing(tmp_path: Path) -> None:
    async def refuse() -> None:
        assert (tmp_path / "attempts" / "t.1.0.1" / "intent").exists()
        raise LaunchRefused(Reason.FENCE_FAILED, "the daemon is mute")

    async def body() -> None:
        async with host(tmp_path, weak=bool(not is_root)) as here:
            with pytest.raises(LaunchRefused, match="the daemon is mute"):
                await here.executor.launch(shell("t.1.0.1", f"touch {tmp_path}/ran", script=None), refuse)
            assert here.executor.statuses() == {}
            for name in ("attempts", "logs", "scripts", "private", "forgotten"):
                assert not list((tmp_path / name).iterdir()), name
            assert not (tmp_path / "ran").exists()

    run(body())


def test_an_attempt_is_launched_once_however_often_it_is_ordered(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path / "state", weak=True) as here:
            order = shell("t.1.0.1", f"echo run >> {tmp_path}/witness; sleep 0.2")
            for _ in range(3):
                await here.executor.launch(order)
            await here.ended("t.1.0.1")
            await here.executor.launch(order)
            await here.executor.forget("t.1.0.1")
            with pytest.raises(LaunchRefused) as late:
                await here.executor.launch(order)
            assert late.value.reason is Reason.STALE_ATTEMPT
            await here.restart()
            with pytest.raises(LaunchRefused):
                await here.executor.launch(order)
            assert (tmp_path / "witness").read_text() == "run\n"

    run(body())


def test_a_terminal_when_asked_for(tmp_path: Path) -> None:
    code = "tty; test -t 0 && test -t 1 && test -t 2 && stty size && echo err >&2 && echo over > /dev/tty"

    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            found = await here.result(shell("t.1.0.1", code, pty=True))
            assert found.state == "SUCCEEDED", found
            shown = here.stdout("t.1.0.1")
            assert shown.startswith("/dev/pts/")
            assert shown.endswith("24 80\r\nerr\r\nover\r\n")
            assert not (here.executor.log_dir("t.1.0.1") / "stderr").exists()

    run(body())


def test_processes_of_an_attempt_are_listed_without_its_shim(tmp_path: Path) -> None:
    async def body(weak: bool) -> None:
        async with host(tmp_path / str(weak), weak) as here:
            await here.executor.launch(shell("t.1.0.1", "sleep 60 & setsid sleep 60 & echo $$ $!; wait"))
            text = await eventually(lambda: here.stdout("t.1.0.1"))
            expected = {int(word) for word in text.split()}
            found = await eventually(lambda: len(here.executor.pids("t.1.0.1")) == 3 and here.executor.pids("t.1.0.1"))
            assert expected < found
            assert here.shim_pid("t.1.0.1") not in found
            assert here.executor.pids("t.9.0.1") == set()

    run(body(True))
    if is_root:
        run(body(False))


def test_a_private_directory_is_the_jobs_and_goes_with_it(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            path = here.executor.private_dir("t.1.0.1")
            found = await here.result(shell("t.1.0.1", f"ln -s / {path}/link; echo x > {path}/use", private_dir=True))
            assert found.state == "SUCCEEDED"
            assert (path / "use").read_text() == "x\n"
            await here.executor.forget("t.1.0.1")
            assert not path.exists()
            assert Path("/etc/passwd").exists()

    run(body())


# -- users


@needs_root
@pytest.mark.parametrize("weak", BOTH_KINDS)
def test_a_job_is_its_user_and_nothing_more(weak: bool) -> None:
    code = """
grep -E '^(Uid|Gid|Groups|CapEff|CapPrm|CapAmb):' /proc/self/status | tr '\t' ' '
refused() { "$@" 2>/dev/null >/dev/null && echo "did: $*"; }
refused kill -KILL $PPID
refused kill -STOP $PPID
refused ls $STATE/logs
refused ls $STATE/attempts
refused ls /proc/$PPID/fd
refused sh -c 'echo $$ > /sys/fs/cgroup/unified/cgroup.procs'
echo again > /dev/stdout
"""
    user = UnixUser(65534, 60, (60, 100), "nobody", "/", "/bin/sh")

    async def body(state: Path) -> None:
        async with host(state, weak, run_as_self=False) as here:
            await here.result(shell("t.1.0.1", code, user=user, env={"STATE": str(state)}))
            seen = [line.split() for line in here.stdout("t.1.0.1").splitlines()]
            nothing = "0000000000000000"
            assert sorted(seen) == sorted(
                [
                    ["Uid:", *["65534"] * 4],
                    ["Gid:", *["60"] * 4],
                    ["Groups:", "60", "100"],
                    ["CapEff:", nothing],
                    ["CapPrm:", nothing],
                    ["CapAmb:", nothing],
                    ["again"],
                ]
            )

    with open_directory() as state:
        run(body(state))


@needs_root
def test_a_job_that_stops_the_shim_with_all_it_has_cannot(tmp_path: Path) -> None:
    """Its limit holds though it stopped itself and tried to stop what watches it."""

    async def body() -> None:
        async with host(tmp_path, weak=bool(not is_root), run_as_self=False) as here:
            code = "kill -STOP $PPID 2>&1; kill -KILL $PPID 2>&1; kill -STOP $$"
            launch = shell("t.1.0.1", code, user=NOBODY, run_limit_ms=400, grace_ms=100)
            found = await here.result(launch)
            assert (found.state, found.reason) == ("FAILED", Reason.TIME_LIMIT)
            assert here.stdout("t.1.0.1").count("not permitted") == 2

    run(body())


@needs_root
def test_directories_are_entered_as_the_user(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True, run_as_self=False) as here:
            shut = tmp_path / "shut"
            shut.mkdir(mode=0o700)
            found = await here.result(spec("t.1.0.1", "true", user=NOBODY, cwd=str(shut)))
            assert (found.reason, "Permission denied" in found.detail) == (Reason.WORKDIR, True)
            found = await here.result(shell("t.2.0.1", "pwd; touch x", user=NOBODY, cwd="/etc"))
            assert (here.stdout("t.2.0.1"), found.exit_code) == ("/etc\n", 1)

    run(body())


@needs_root
def test_a_script_is_readable_by_its_user_alone() -> None:
    async def body(state: Path) -> None:
        async with host(state, weak=True, run_as_self=False) as here:
            script = b"#!/bin/sh\nstat -c '%u %a' $0\nsleep 30\n"
            await here.executor.launch(spec("t.1.0.1", "job.sh", script=script, user=NOBODY))
            await eventually(lambda: here.stdout("t.1.0.1") == "65534 500\n")
            other = UnixUser(1, 1, (1,), "daemon", "/", "/bin/sh")
            path = state / "scripts" / "t.1.0.1" / "job.sh"
            found = await here.result(shell("t.2.0.1", f"cat {path}; ls {path.parent}", user=other))
            assert found.exit_code != 0
            assert here.stdout("t.2.0.1") == ""

    with open_directory() as state:
        run(body(state))


@needs_root
def test_a_state_directory_that_the_user_cannot_reach_is_said_before_the_launch(tmp_path: Path) -> None:
    async def body() -> None:
        (tmp_path / "deep").mkdir(mode=0o700)
        async with host(tmp_path / "deep" / "state", weak=True, run_as_self=False) as here:
            with pytest.raises(LaunchRefused) as refused:
                await here.executor.launch(spec("t.1.0.1", "job.sh", script=b"#!/bin/sh\n", user=NOBODY))
            assert refused.value.reason is Reason.LAUNCH_DENIED
            assert "chmod" in refused.value.detail

    run(body())


@needs_root
def test_a_root_executor_runs_nothing_as_root(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True, run_as_self=False) as here:
            root = UnixUser(0, 0, (0,), "root", "/root", "/bin/sh")
            for user in (None, root):
                with pytest.raises(LaunchRefused) as refused:
                    await here.executor.launch(spec("t.1.0.1", "true", user=user))
                assert refused.value.reason is Reason.UNIX_USER_UNMAPPED

    run(body())


@needs_root
@pytest.mark.parametrize("point", ["task.drop:error", "task.joined:error"])
def test_a_drop_that_fails_never_reaches_the_program(
    tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUSHARE_FAILPOINT", point)

    async def body() -> None:
        async with host(tmp_path / "state", weak=True, run_as_self=False) as here:
            (tmp_path / "open").mkdir()
            (tmp_path / "open").chmod(0o777)
            found = await here.result(shell("t.1.0.1", f"touch {tmp_path}/open/ran", user=NOBODY))
            expected = Reason.LAUNCH_DENIED if "drop" in point else Reason.INFRA
            assert (found.state, found.reason, found.started_ms) == ("FAILED", expected, None)
            assert not (tmp_path / "open" / "ran").exists()

    run(body())


def test_users_come_from_the_name_service() -> None:
    assert unixuser.current().uid == os.geteuid()
    nobody = unixuser.resolve("nobody")
    assert (nobody.uid, nobody.gid in nobody.groups) == (65534, True)
    for name in ("root", "no-such-user-here", "", "a\0b"):
        with pytest.raises(LaunchRefused) as refused:
            unixuser.resolve(name)
        assert refused.value.reason is Reason.UNIX_USER_UNMAPPED


# -- limits of the host


@needs_groups
def test_host_memory_is_a_limit_with_figures(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path) as here:
            launch = python("t.1.0.1", "x = b'x' * (200 << 20)", host_memory_mib=64)
            found = await here.result(launch)
            assert (found.state, found.reason) == ("FAILED", Reason.HOST_MEMORY_LIMIT)
            assert "64 MiB" in found.detail
            # its child is killed, the shell lives on and says so
            inner = launch.argv[-1]
            found = await here.result(shell("t.2.0.1", f'{launch.argv[0]} -I -S -c "{inner}"', host_memory_mib=64))
            assert found.reason is Reason.HOST_MEMORY_LIMIT
            found = await here.result(python("t.3.0.1", "x = b'x' * (20 << 20)", host_memory_mib=64))
            assert found.state == "SUCCEEDED"

    run(body())


@needs_groups
def test_a_fork_bomb_stays_inside_its_job(tmp_path: Path) -> None:
    code = """
import os, time
born = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(60); os._exit(0)
        born += 1
except OSError as error:
    print(born, error.errno, flush=True)
os._exit(9)
"""

    async def body() -> None:
        async with host(tmp_path) as here:
            found = await here.result(python("t.1.0.1", code, pids_max=20))
            assert found.exit_code == 9
            assert here.stdout("t.1.0.1").split() == ["19", "11"]
            assert "its limit of 20" in found.detail

    run(body())


@needs_groups
def test_devices_that_were_not_granted_do_not_open(tmp_path: Path) -> None:
    """/dev/full stands for a card of somebody else, /dev/zero for the job's own."""

    async def body() -> None:
        async with host(tmp_path) as here:
            code = "head -c1 /dev/zero | wc -c; head -c1 /dev/full | wc -c"
            await here.result(shell("t.1.0.1", code, denied_devices=((1, 7),)))
            assert here.stdout("t.1.0.1").split() == ["1", "0"]
            assert "not permitted" in here.stderr("t.1.0.1")
            await here.result(shell("t.2.0.1", code, denied_devices=()))
            assert here.stdout("t.2.0.1").split() == ["1", "1"]

    run(body())


@needs_groups
def test_a_limit_that_the_kernel_refuses_refuses_the_launch(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path) as here:
            with pytest.raises(LaunchRefused) as refused:
                await here.executor.launch(spec("t.1.0.1", "true", pids_max=2**40))
            assert refused.value.reason is Reason.FENCE_FAILED
            assert here.executor.statuses() == {}
            assert not list((tmp_path / "attempts").iterdir())

    run(body())


def test_records_and_logs_belong_to_the_agent_alone(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            await here.result(shell("t.1.0.1", "echo x"))
            for name in ("attempts", "logs", "attempts/t.1.0.1", "logs/t.1.0.1"):
                assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o700, name
            for path in (*(tmp_path / "attempts/t.1.0.1").iterdir(), tmp_path / "logs/t.1.0.1/stdout"):
                if path.name != "sock":
                    assert stat.S_IMODE(path.stat().st_mode) == 0o600, path

    run(body())
