"""The node's ends of connections on real shims: commands beside a task, its input, and whose port it is."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from executor_kit import BOTH_KINDS, Host, alive, eventually, host, run, shell, spec

from gpushare.reasons import Reason
from gpushare.v1 import agent_pb2, job_pb2
from gpushare_agent import channelstreams, listeners
from gpushare_agent.attemptfiles import AttemptFiles
from gpushare_agent.attempttable import Asked
from gpushare_agent.channels import ChannelOrder, Channels, LocalEnd
from gpushare_agent.connections import NotConnected
from gpushare_agent.launchspec import UnixUser

TASK = "t.1.0.1"


def channels_of(here: Host) -> Channels:
    return Channels(lambda: here.executor.connections, here.executor.pids, here.executor.log_dir, lambda: 1)


async def connect(here: Host, kind: Any = "exec", **fields: Any) -> LocalEnd:
    order = ChannelOrder(channel_id="c", attempt_id=TASK, term=1, kind=kind, **fields)
    return await channels_of(here).open(order)


async def execute(here: Host, code: str, **fields: Any) -> LocalEnd:
    return await connect(here, argv=("sh", "-c", code), **fields)


async def refusal(here: Host, **fields: Any) -> NotConnected:
    with pytest.raises(NotConnected) as raised:
        await connect(here, **fields)
    return raised.value


async def said(end: LocalEnd) -> tuple[bytes, bytes, int | None]:
    """(output, error output, code) to the end."""
    out, err = b"", b""
    async for piece in end.pieces():
        if piece.end:
            await end.close()
            return out, err, piece.exit_code
        if piece.is_error:
            err += piece.data
        else:
            out += piece.data
    raise AssertionError("the pieces ended without an end")


async def first_line(end: LocalEnd) -> bytes:
    out = b""
    async for piece in end.pieces():
        out += piece.data
        if b"\n" in out:
            return out.partition(b"\n")[0].strip()
    raise AssertionError(out)


@pytest.mark.parametrize("weak", BOTH_KINDS)
def test_a_command_is_in_the_tasks_containment_with_its_environment(tmp_path: Path, weak: bool) -> None:
    async def test() -> None:
        async with host(tmp_path, weak) as here:
            await here.executor.launch(shell(TASK, "cat /proc/self/cgroup; exec sleep 600", env={"MINE": "x"}))
            await here.running(TASK)
            await eventually(lambda: here.stdout(TASK))
            assert (await said(await execute(here, "cat /proc/self/cgroup")))[0].decode() == here.stdout(TASK)
            out, err, code = await said(await execute(here, "echo $MINE; echo oops >&2; pwd; exit 7"))
            assert (out, err, code) == (b"x\n/\n", b"oops\n", 7)
            held = await execute(here, "echo $$; exec sleep 600")
            pid = int(await first_line(held))
            assert pid in here.executor.pids(TASK)
            # It ends with the task, and the task's end waits for its.
            await here.executor.stop(TASK, Reason.CANCELLED, 100)
            await here.ended(TASK)
            assert not alive(pid)
            await held.close()

    run(test())


@pytest.mark.parametrize("weak", BOTH_KINDS)
def test_a_command_that_nobody_waits_for_is_ended_and_the_task_goes_on(tmp_path: Path, weak: bool) -> None:
    async def test() -> None:
        async with host(tmp_path, weak) as here:
            await here.executor.launch(spec(TASK, "sleep", "600"))
            await here.running(TASK)
            polite = await execute(here, "echo $$; exec sleep 600")
            stubborn = await execute(here, "trap '' HUP TERM; echo $$; while :; do sleep 0.1; done", pty=True)
            pids = [int(await first_line(end)) for end in (polite, stubborn)]
            for end in (polite, stubborn):
                await end.close()
            await eventually(lambda: not any(alive(pid) for pid in pids))
            # An agent that was replaced can no longer wait for it either.
            pid = int(await first_line(await execute(here, "echo $$; exec sleep 600")))
            assert (await here.restart())[TASK].state == "RUNNING"
            await eventually(lambda: not alive(pid))
            assert (await said(await execute(here, "echo again")))[0] == b"again\n"

    run(test())


@pytest.mark.parametrize("weak", BOTH_KINDS)
def test_no_command_outlives_its_shim(tmp_path: Path, weak: bool) -> None:
    async def test() -> None:
        async with host(tmp_path, weak) as here:
            await here.executor.launch(spec(TASK, "sleep", "600"))
            await here.running(TASK)
            # A session of its own and another parent: what is left are the groups, or the mark in its environment.
            code = "echo $$; exec setsid --wait sh -c 'sleep 600 & sleep 600'"
            held = await execute(here, code)
            pid = int(await first_line(held))
            os.kill(here.shim_pid(TASK), signal.SIGKILL)
            assert (await here.ended(TASK)).reason is Reason.INFRA
            assert not alive(pid)
            with pytest.raises(NotConnected):
                await said(held)
            await held.close()

    run(test())


def test_what_does_not_run_cannot_be_connected_to(tmp_path: Path) -> None:
    async def test() -> None:
        async with host(tmp_path, weak=True) as here:
            wanted: dict[str, Any] = {"argv": ("true",)}
            assert (await refusal(here, **wanted)).reason is Reason.NOT_RUNNING
            await here.executor.launch(spec(TASK, "sleep", "600"))
            await here.running(TASK)
            order = ChannelOrder(channel_id="c", attempt_id=TASK, term=0, kind="exec", argv=("true",))
            with pytest.raises(NotConnected) as raised:
                await channels_of(here).open(order)
            assert raised.value.reason is Reason.STALE_TERM
            here.executor.suspend(TASK, True)
            await eventually(lambda: here.status(TASK).state == "SUSPENDED")
            assert (await refusal(here, **wanted)).reason is Reason.NOT_RUNNING
            here.executor.suspend(TASK, False)
            await here.running(TASK)
            assert (await said(await connect(here, **wanted)))[2] == 0
            await here.executor.stop(TASK, Reason.CANCELLED, 0)
            await here.ended(TASK)
            assert (await refusal(here, **wanted)).reason is Reason.NOT_RUNNING

    run(test())


def test_what_cannot_be_started_tells_why_with_a_shells_code(tmp_path: Path) -> None:
    async def test() -> None:
        async with host(tmp_path, weak=True) as here:
            await here.executor.launch(spec(TASK, "sleep", "600"))
            await here.running(TASK)
            out, err, code = await said(await connect(here, argv=("no-such-program",)))
            assert (out, code) == (b"", 127)
            assert b"no-such-program" in err
            assert (await said(await connect(here, argv=("/etc/passwd",))))[2] == 126
            assert (await refusal(here, argv=("x" * 64_000,))).reason is Reason.INVALID_FIELD

    run(test())


def test_a_slow_reader_holds_up_the_command_and_nothing_else(tmp_path: Path) -> None:
    async def test() -> None:
        async with host(tmp_path, weak=True) as here:
            await here.executor.launch(spec(TASK, "sleep", "600"))
            await here.running(TASK)
            flood = await execute(here, "head -c 3000000 /dev/zero; echo done >&2")
            quick, _, _ = await said(await execute(here, "echo quick"))
            assert quick == b"quick\n"
            out, err, code = await said(flood)
            assert (len(out), err, code) == (3_000_000, b"done\n", 0)

    run(test())


def test_input_reaches_the_task_from_whoever_is_attached_to_its_end(tmp_path: Path) -> None:
    async def test() -> None:
        async with host(tmp_path, weak=True) as here:
            await here.executor.launch(spec(TASK, "cat", stdin=True))
            await here.running(TASK)
            first, second = await connect(here, "attach"), await connect(here, "attach")
            await first.write(b"one\n")
            await second.write(b"two\n")
            await eventually(lambda: here.stdout(TASK) == "one\ntwo\n")
            await first.close()
            # One that is replaced finds the same input.
            await second.close()
            await here.restart()
            third = await connect(here, "attach")
            assert third.opened.stdout_bytes == 8
            await third.write(b"x" * 200_000)
            third.end_input()
            assert (await here.ended(TASK)).exit_code == 0
            assert len(here.stdout(TASK)) == 200_008
            assert [piece.end async for piece in third.pieces()] == [True]
            await third.close()

    run(test())


def test_a_task_without_input_takes_none(tmp_path: Path) -> None:
    async def test() -> None:
        async with host(tmp_path, weak=True) as here:
            await here.executor.launch(shell(TASK, "cat; sleep 600", pty=True))
            await here.running(TASK)
            end = await connect(here, "attach", rows=5, columns=6)
            assert (end.opened.pty, end.opened.takes_input) == (True, False)
            with pytest.raises(NotConnected) as raised:
                await end.write(b"x")
            assert raised.value.reason is Reason.NO_INPUT
            await end.close()

    run(test())


def test_a_terminal_has_the_size_that_was_asked_for_and_follows(tmp_path: Path) -> None:
    async def test() -> None:
        async with host(tmp_path, weak=True) as here:
            code = "trap 'stty size' WINCH; stty size; while :; do sleep 0.05; done"
            await here.executor.launch(shell(TASK, code, pty=True, stdin=True, window_rows=11, window_columns=22))
            await eventually(lambda: "11 22" in here.stdout(TASK))
            end = await connect(here, "attach", rows=33, columns=44)
            await eventually(lambda: "33 44" in here.stdout(TASK))
            end.resize(55, 66)
            await eventually(lambda: "55 66" in here.stdout(TASK))
            await end.close()

    run(test())


def test_only_a_port_of_the_tasks_own_is_reached(tmp_path: Path) -> None:
    serve = (
        "import socket\n"
        "s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)\n"
        "while True:\n c, _ = s.accept(); c.sendall(b'hello ' + c.recv(9)); c.close()"
    )

    async def test() -> None:
        async with host(tmp_path, weak=True) as here:
            await here.executor.launch(spec(TASK, sys.executable, "-c", serve))
            await eventually(lambda: here.stdout(TASK).endswith("\n"))
            end = await connect(here, "forward", port=int(here.stdout(TASK)))
            await end.write(b"you")
            assert (await said(end))[0] == b"hello you"
            with socket.create_server(("127.0.0.1", 0)) as foreign:
                port = foreign.getsockname()[1]
                assert (await refusal(here, kind="forward", port=port)).reason is Reason.PORT_CLOSED
            assert (await refusal(here, kind="forward", port=port)).reason is Reason.PORT_CLOSED

    run(test())


@pytest.mark.parametrize(
    ("bind", "reached"),
    [
        ("127.0.0.1", ["127.0.0.1"]),
        ("0.0.0.0", ["127.0.0.1"]),
        ("::1", ["::1"]),
        ("::", ["127.0.0.1", "::1"]),
        ("127.0.0.2", []),
    ],
)
def test_addresses_are_those_that_the_listener_takes(bind: str, reached: list[str]) -> None:
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    with socket.create_server((bind, 0), family=family) as server:
        port = server.getsockname()[1]
        assert list(listeners.targets(port, {os.getpid()})) == reached
        assert listeners.targets(port, {os.getppid()}) == {}


def test_one_foreign_socket_on_the_same_port_is_enough_to_refuse() -> None:
    code = (
        "import socket, sys\n"
        "s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n"
        "s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen(); print(flush=True); sys.stdin.read()"
    )
    with socket.socket() as mine:
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        mine.bind(("127.0.0.1", 0))
        port = mine.getsockname()[1]
        command = [sys.executable, "-c", code, str(port)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            assert other.stdout.readline()
            assert list(listeners.targets(port, {other.pid})) == ["127.0.0.1"]
            mine.listen()
            assert listeners.targets(port, {other.pid}) == {}
            assert list(listeners.targets(port, {other.pid, os.getpid()})) == ["127.0.0.1"]


def test_only_so_many_descriptors_of_a_job_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert list(listeners.targets(port, {os.getpid()})) == ["127.0.0.1"]
        # It lies behind the three streams that every process has.
        monkeypatch.setattr(listeners, "LOOKS_MAX", 3)
        assert listeners.targets(port, {os.getpid()}) == {}


def test_input_that_the_task_no_longer_reads_holds_up_nobody(tmp_path: Path) -> None:
    async def test() -> None:
        async with host(tmp_path, weak=True) as here:
            await here.executor.launch(shell(TASK, "exec <&-; sleep 600", stdin=True))
            await here.running(TASK)
            end = await connect(here, "attach")
            await asyncio.wait_for(end.write(b"x" * 1_000_000), 30)
            await end.close()

    run(test())


def test_a_command_that_sends_its_output_elsewhere_is_waited_for_and_a_cut_link_ends_the_waiting(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        async with host(tmp_path, weak=True) as here:
            await here.executor.launch(spec(TASK, "sleep", "600"))
            await here.running(TASK)
            assert await said(await execute(here, "exec >/dev/null 2>&1; sleep 0.5; exit 3")) == (b"", b"", 3)
            held = await execute(here, "exec >/dev/null 2>&1; exec sleep 600")
            waiting = asyncio.create_task(said(held))
            fds = Path(f"/proc/{here.shim_pid(TASK)}/fd")
            before = len(list(fds.iterdir()))
            link = here.executor._table.entries[TASK].link
            assert link is not None
            # A shim lets go of who sends it what is no order, and of what came along.
            assert link.send_with(b"no order", (0, 1))
            with pytest.raises(NotConnected):
                await asyncio.wait_for(waiting, 10)
            await held.close()
            await eventually(lambda: len(list(fds.iterdir())) == before)

    run(test())


def test_a_descriptor_that_nobody_took_is_closed() -> None:
    async def test() -> None:
        ours, theirs = os.pipe()
        asked = Asked("1")
        asked.hear({"event": "input", "id": "1", "fd": ours})
        asked.drop()
        with pytest.raises(BrokenPipeError):
            os.write(theirs, b"x")
        os.close(theirs)

    run(test())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a directory away")
def test_a_private_directory_that_was_made_and_not_given_is_given(tmp_path: Path) -> None:
    files = AttemptFiles(tmp_path, "i", "b", None)
    files.prepare_root()
    files.private_dir(TASK).mkdir()
    files.make_private_dir(TASK, UnixUser(4321, 4322, (), "ada", "/", "/bin/sh"))
    found = files.private_dir(TASK).stat()
    assert (found.st_uid, found.st_gid) == (4321, 4322)


class _Call:
    """The scheduler's side of a connection: says `requests`, then waits until it was told of an error."""

    def __init__(self, requests: list[job_pb2.ConnectRequest]) -> None:
        self._requests = requests
        self._hung_up = asyncio.Event()
        self.heard: list[agent_pb2.ChannelOutput] = []

    async def read(self) -> object:
        if self._requests:
            return agent_pb2.ChannelInput(request=self._requests.pop(0))
        await self._hung_up.wait()
        return grpc.aio.EOF

    async def write(self, output: agent_pb2.ChannelOutput) -> None:
        self.heard.append(output)
        if output.error_reason:
            self._hung_up.set()


def test_messages_without_bytes_do_not_pile_up_before_a_command_that_does_not_read(tmp_path: Path) -> None:
    async def test() -> None:
        async with host(tmp_path, weak=True) as here:
            await here.executor.launch(spec(TASK, "sleep", "600"))
            await here.running(TASK)
            end = await execute(here, "exec sleep 600")
            many = 2 * channelstreams.FRAMES_MAX
            harmless = [job_pb2.ConnectRequest(window=job_pb2.WindowSize(rows=9, columns=9)) for _ in range(many)]
            harmless += [job_pb2.ConnectRequest(input=b"") for _ in range(many)]
            blocking = [job_pb2.ConnectRequest(input=b"x" * (1 << 20))]
            ends = [job_pb2.ConnectRequest(end_of_input=job_pb2.EndOfInput()) for _ in range(many)]
            call = _Call([*blocking, *harmless, *ends])
            order = ChannelOrder(channel_id="c", attempt_id=TASK, term=1, kind="exec")
            await asyncio.wait_for(channelstreams._Conversation(call, order, end).run(), 20)
            await end.close()
            assert [each.error_reason for each in call.heard] == ["", "INVALID_FIELD"]
            assert "messages are not yet taken" in call.heard[1].error_detail

    run(test())
