"""Processes that people start beside a running task, as the attempt's shim holds them.

Runs in the shim; imports the shims' small modules alone. Each becomes what the task became: in its control groups, as
its user, with its environment, so that every limit holds for it, too. Its streams are descriptors that the agent made
and passed along: nothing that it reads or writes comes through here. Invariants: at most `MAX_EXECS` live at once; none
outlives the shim, nor the task; one whose agent has gone or lost interest is told to end, and killed after `GRACE_NS`.
"""

from __future__ import annotations

import os

from gpushare_agent import procscan, signals, task, tinyjson

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` and `collections.abc` would cost this process a mebibyte
    from typing import Any

MAX_EXECS = 16
GRACE_NS = 5_000_000_000
KILL_AGAIN_NS = 1_000_000_000
NOBODY = -1
#: Standard input, output and error, and where a failure before the exec is told.
STREAMS_PASSED = 4


class _Exec:
    """One process: `peer` wants to hear of its end, NOBODY once it does not; `kill_at` None while it may live."""

    def __init__(self, exec_id: str, pid: int, peer: int) -> None:
        self.id = exec_id
        self.pid = pid
        self.peer = peer
        self.kill_at: int | None = None

    def signal_session(self, number: int) -> None:
        """To every process of its session. The number of a session is nobody else's while we have not reaped it."""
        procscan.signal_all(lambda: {each.pid for each in procscan.snapshot() if each.session == self.pid}, number)


class Execs:
    """All of one attempt. `intent` is the attempt's own."""

    def __init__(self, intent: dict[str, Any]) -> None:
        self._intent = intent
        self._by_pid: dict[int, _Exec] = {}

    @property
    def alive(self) -> bool:
        """True while one of them is not reaped."""
        return bool(self._by_pid)

    def start(self, order: dict[str, Any], fds: list[int], peer: int, may: bool) -> tinyjson.Flat:
        """Fork one where it `may` begin: {op, id, argv, pty, env}, with its streams. What the agent is told. Raises
        ValueError for an order without them."""
        answer: tinyjson.Flat = {"event": "exec", "id": str(order["id"])}
        if not may:
            return {**answer, "refused": "NOT_RUNNING", "detail": "the task does not run now"}
        if len(fds) != STREAMS_PASSED:
            raise ValueError("an exec comes with four descriptors")
        if len(self._by_pid) >= MAX_EXECS:
            return {**answer, "refused": "BUSY", "detail": f"{MAX_EXECS} commands run beside this task already"}
        plan = task.Plan(self._intent_of(order), os.getpid(), (fds[0], fds[1], fds[2]), fds[3])
        try:
            pid = os.fork()
        except OSError as error:
            return {**answer, "refused": "INTERNAL", "detail": f"the command could not be forked: {error.strerror}"}
        if pid == 0:
            task.become(plan)
        self._by_pid[pid] = _Exec(str(order["id"]), pid, peer)
        return {**answer, "pid": pid}

    def _intent_of(self, order: dict[str, Any]) -> dict[str, Any]:
        spec = self._intent["spec"]
        env = {**spec["env"], **order["env"]}
        # Where the task prints is the task's own.
        changed = {
            **spec,
            "argv": order["argv"],
            "pty": bool(order["pty"]),
            "env": env,
            "output_path": "",
            "error_path": "",
        }
        return {**self._intent, "script": None, "spec": changed}

    def reaped(self, pid: int, status: int) -> tuple[int, tinyjson.Flat] | None:
        """(peer, what it is told) if the process was one of ours and somebody wants to hear of it."""
        ended = self._by_pid.pop(pid, None)
        if ended is None or ended.peer == NOBODY:
            return None
        code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        return ended.peer, {"event": "exec_end", "id": ended.id, "exit_code": code}

    def end(self, exec_id: str, now_ns: int) -> None:
        """Nobody waits for it any more."""
        self._end([each for each in self._by_pid.values() if each.id == exec_id], now_ns)

    def peer_gone(self, peer: int, now_ns: int) -> None:
        """Nor for any of these."""
        self._end([each for each in self._by_pid.values() if each.peer == peer], now_ns)

    def _end(self, execs: list[_Exec], now_ns: int) -> None:
        for each in execs:
            each.peer = NOBODY
            if each.kill_at is None:
                each.kill_at = now_ns + GRACE_NS
                for number in (signals.SIGHUP, signals.SIGTERM, signals.SIGCONT):
                    each.signal_session(number)

    def next_ns(self) -> int | None:
        """When `tick` has something to do."""
        return min((each.kill_at for each in self._by_pid.values() if each.kill_at is not None), default=None)

    def tick(self, now_ns: int) -> None:
        """Kill what did not end in time."""
        for each in list(self._by_pid.values()):
            if each.kill_at is not None and now_ns >= each.kill_at:
                each.kill_at = now_ns + KILL_AGAIN_NS
                each.signal_session(signals.SIGKILL)

    def kill_all(self) -> None:
        """At the task's end, by their pids, ours until we reap them: one may not have joined its groups yet."""
        for pid in self._by_pid:
            os.kill(pid, signals.SIGKILL)
