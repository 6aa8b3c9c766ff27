"""The shim: one process per attempt that owns it from the exec record to the exit record, whoever else dies.

Runs in a fork of the launcher; imports nothing after its start, so an upgrade of the files under it is
harmless. It alone decides how an attempt ended: it holds the run-time limit, the grace timer, the end of the
lease and the streams, kills what is left when the main process is over, waits for the proof that all of it
is gone, makes the exit record durable, and exits. In a file of its own the task reads that it will be stopped. It
is suspended and let go on when an agent says so; its limits go on meanwhile, and a suspended task that is to end is
let go first, so that it hears its SIGTERM. The shim lends the task's input and starts processes beside the task (see
`execs`). Agents come and go on its socket; a status to them is always the whole status. Deadlines are nanoseconds of
CLOCK_BOOTTIME.
"""

from __future__ import annotations

import os
import select
import time

from gpushare_agent import (
    attemptend,
    cgroupfs,
    execs,
    outputs,
    peers,
    procscan,
    records,
    signals,
    stopnotice,
    syscalls,
    task,
    taskset,
    timelimit,
    tinyjson,
)
from gpushare_agent.failpoints import failpoint

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` and `collections.abc` would cost this process a mebibyte
    import _socket
    from collections.abc import Callable
    from typing import Any, NoReturn

MS = 1_000_000
IDLE_WAIT_MS = 60_000
LEASE_CHECK_MS = 1000
# what a SIGKILL and the wait for the last process may take of the lease's end
LEASE_MARGIN_NS = 250 * MS
STUCK_AFTER_NS = 60_000 * MS
KILL_RETRY_FIRST_MS = 1
KILL_RETRY_LAST_MS = 1000
RECORD_RETRY_MS = 1000
SUSPEND_RETRY_FIRST_MS = 2
SUSPEND_RETRY_LAST_MS = 1000
LEASE_BYTES = 8


class Refused(Exception):
    """The attempt never started here, for `reason`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def refuse(channel: int, reason: str, detail: str) -> None:
    """Tell the agent, if it still listens, that nobody here will run the attempt."""
    try:
        os.write(channel, tinyjson.dumps({"event": "refused", "reason": reason, "detail": detail}))
    except OSError:
        return


def boot_ns() -> int:
    """Nanoseconds since boot, sleep included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def main(directory: str, channel: int, lease_fd: int) -> NoReturn:
    """The forked child's whole life."""
    code = 1
    try:
        os.setsid()
        syscalls.set_name("gpushare-shim")
        failpoint("shim.started")
        try:
            shim = _own(directory, channel, lease_fd)
        except Refused as refused:
            refuse(channel, refused.reason, refused.detail)
        else:
            shim.run()
        code = 0
    except BaseException as error:  # the last frame of a process: say it where the admin looks, the agent does the rest
        os.write(2, f"shim of {directory}: {type(error).__name__}: {error}\n".encode(errors="replace"))
    finally:
        os._exit(code)


def _own(directory: str, channel: int, lease_fd: int) -> Shim:
    """Everything up to the durable exec record; from then on the attempt is this shim's. Raises Refused."""
    try:
        dirfd = records.open_directory(directory)
        intent = tinyjson.loads(records.read(dirfd, records.INTENT) or b"")
        if intent["groups"] is not None:
            cgroupfs.join(intent["groups"]["shim_dir"])
        syscalls.adopt_orphans()
        listener = peers.listen(dirfd)
        output = outputs.Outputs(intent["log_dir"], intent["spec"])
        failpoint("shim.bound")
        shim = Shim(dirfd, intent, listener, output, lease_fd)
        records.create(dirfd, records.EXEC, tinyjson.dumps(shim.identity), "shim.torn_exec_record")
        failpoint("shim.exec_recorded")
    except FileExistsError:
        raise Refused("STALE_ATTEMPT", "the attempt was sealed or started before") from None
    except (OSError, ValueError, KeyError) as error:
        raise Refused("INFRA", f"the shim could not take the attempt: {error}") from None
    shim.peers.add(channel)
    return shim


class Shim:
    """The event loop of one attempt."""

    def __init__(
        self, dirfd: int, intent: dict[str, Any], listener: _socket.socket, output: outputs.Outputs, lease_fd: int
    ) -> None:
        self.intent = intent
        self.spec: dict[str, Any] = intent["spec"]
        self._start: int = getattr(procscan.stat_of(os.getpid()), "start", 0)
        self.identity: tinyjson.Flat = {
            "attempt_id": self.spec["attempt_id"],
            "boot_id": intent["boot_id"],
            "shim_pid": os.getpid(),
            "shim_start": self._start,
        }
        self._dirfd = dirfd
        self._lease_fd = lease_fd
        self._output = output
        self._end = attemptend.AttemptEnd(self.spec, intent["groups"])
        self._execs = execs.Execs(intent)
        self._task: taskset.Task | None = None
        self._task_pid = 0
        self._error_pipe = -1
        self._error_text = b""
        self._events_fd = -1
        self._limit = timelimit.TimeLimit(self.spec)
        user = self.spec["user"]
        self._notice = stopnotice.StopNotice(intent["notice_dir"], None if user is None else user["gid"])
        self._grace_deadline: int | None = None
        self._killed_at: int | None = None
        self._next_kill = 0
        self._kill_retry_ms = KILL_RETRY_FIRST_MS
        self._gone = False
        self._suspend_wanted = False
        self._next_suspend = 0
        self._suspend_retry_ms = SUSPEND_RETRY_FIRST_MS
        self._next_record = 0
        self._recorded = False
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self.peers = peers.Peers(listener, self._watch, self._unwatch, self._message, self._obey, self._peer_gone)

    # -- the loop

    def run(self) -> None:
        """Start the task and see it through to the durable exit record."""
        self.peers.begin()
        self._watch(self._wake_on_children(), self._reap)
        self._publish()
        self._fork_task()
        while not self._recorded:
            for fd, _ in self._poll.poll(self._wait_ms()):
                handler = self._handlers.get(fd)
                if handler is not None:
                    handler()
            self._tick(boot_ns())
        failpoint("shim.exit_recorded")
        self._publish()

    def _tick(self, now: int) -> None:
        self._output.resume(self._watch)
        self._execs.tick(now)
        if self._task is None:
            self._record(now)
        elif self._end.over or self._killed_at is not None:
            self._clear(now)
        else:
            self._suspend_step(now)
            self._check_limits(now)

    def _wait_ms(self) -> int:
        """Until the next thing that has a time; a wait without end does not exist."""
        now = boot_ns()
        waits = [IDLE_WAIT_MS]
        if self._task is None or self._gone:
            waits.append(max(0, -(-(self._next_record - now) // MS)))
        elif self._end.over or self._killed_at is not None:
            waits.append(max(0, -(-(self._next_kill - now) // MS)))
        else:
            suspend_at = self._next_suspend if self._suspend_pending else None
            limit_at = None if self._end.stopping else self._limit.next_ns()
            deadlines = (limit_at, self._grace_deadline, self._lease_deadline(), suspend_at)
            waits += [max(0, -(-(deadline - now) // MS)) for deadline in deadlines if deadline is not None]
            if self.spec["on_disconnect"] == "stop_and_requeue":
                waits.append(LEASE_CHECK_MS)
        kill_at = self._execs.next_ns()
        if kill_at is not None:
            waits.append(max(0, -(-(kill_at - now) // MS)))
        paused = self._output.next_resume_ms()
        return min(waits if paused is None else [*waits, paused])

    def _watch(self, fd: int, handler: Callable[[], None], events: int = select.POLLIN) -> None:
        self._handlers[fd] = handler
        self._poll.register(fd, events)

    def _unwatch(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    # -- the task's start

    def _fork_task(self) -> None:
        try:
            self._error_pipe, child_end = os.pipe()
            ends = self._output.open()
            plan = task.Plan(self.intent, os.getpid(), ends, child_end)
            # Before the fork whatever can be: until the child has its program, the kernel copies each page written to.
            os.set_blocking(self._error_pipe, False)
            self._watch(self._error_pipe, self._read_error_pipe)
            self._output.watch(self._watch, self._unwatch)
            child = os.fork()
        except OSError as error:
            self._end.never_started("fork", f"the task could not be forked: {error}")
            return
        if child == 0:
            task.become(plan)
        self._task_pid = child
        os.close(child_end)
        self._output.close_child_ends()
        self._task = taskset.task_of(self.intent, self._scope_of(child))
        failpoint("shim.task_forked")

    def _scope_of(self, child: int) -> procscan.Scope | None:
        """What its processes are known by; None where their group tells."""
        if self.intent["groups"] is not None:
            return None
        since = getattr(procscan.stat_of(child), "start", self._start)
        self._note("task", {"pid": child, "start": since})
        return procscan.Scope(os.getpid(), child, self.intent["tag"], since)

    def _read_error_pipe(self) -> None:
        """Silence to the end means that the exec went through; words mean that it did not."""
        try:
            data = os.read(self._error_pipe, 4096)
        except BlockingIOError:
            return
        if data:
            self._error_text += data
            return
        self._unwatch(self._error_pipe)
        os.close(self._error_pipe)
        self._error_pipe = -1
        if self._error_text:
            self._end.launch_failed(self._error_text)
            return
        self._end.started()
        self._limit.begin(boot_ns())
        if self._end.stopping and self._killed_at is None:
            # the stop came while there was no program yet to hear it
            self._terminate()
        self._publish()

    def _wake_on_children(self) -> int:
        """A descriptor that becomes readable when a child ended: SIGCHLD through a pipe."""
        readable, writable = os.pipe()
        os.set_blocking(readable, False)
        os.set_blocking(writable, False)
        signals.wake_on(signals.SIGCHLD, writable)
        self._wakeup = readable
        return readable

    def _reap(self) -> None:
        try:
            os.read(self._wakeup, 4096)
        except BlockingIOError:
            pass
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._task_pid:
                self._main_ended(status)
                continue
            if self._end.over:
                self._next_kill = 0
            told = self._execs.reaped(pid, status)
            if told is not None:
                self.peers.tell(told[0], tinyjson.dumps(told[1]))

    def _main_ended(self, status: int) -> None:
        failpoint("shim.task_exited")
        while self._error_pipe >= 0:
            # its other end is closed now: what the child had to say is all there
            self._read_error_pipe()
        self._end.main_ended(status)
        self._next_kill = 0
        if self.intent["groups"] is not None:
            self._watch_group()

    def _watch_group(self) -> None:
        """The kernel flags this file when `populated` changes, so that the wait costs no polling."""
        try:
            self._events_fd = os.open(f"{self.intent['groups']['task_dir']}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        self._watch(self._events_fd, self._group_changed, select.POLLPRI)

    def _group_changed(self) -> None:
        os.pread(self._events_fd, 256, 0)
        self._next_kill = 0

    # -- limits and the stop

    def _lease_deadline(self) -> int | None:
        """When the next signal must go out so that everything is over when the lease is; None if the job is to
        be kept.

        The SIGTERM goes a whole grace before the end; a task that is being stopped already gets its SIGKILL
        at the end.
        """
        if self.spec["on_disconnect"] != "stop_and_requeue":
            return None
        data = os.pread(self._lease_fd, LEASE_BYTES, 0)
        end: int = int.from_bytes(data, "little", signed=True) if len(data) == LEASE_BYTES else 0
        grace_ms: int = 0 if self._end.stopping else self.spec["grace_ms"]
        return end - grace_ms * MS - LEASE_MARGIN_NS

    def _check_limits(self, now: int) -> None:
        lease_deadline = self._lease_deadline()
        lease_over = lease_deadline is not None and now >= lease_deadline
        if self._grace_deadline is not None and (now >= self._grace_deadline or lease_over):
            self._kill(now)
        elif lease_over:
            detail = "the node had no word from the scheduler until the end of its lease"
            self._stop({"reason": "LEASE_EXPIRED", "final_state": "STOPPED", "detail": detail}, self.spec["grace_ms"])
        elif self._end.stopping:
            return
        elif self._limit.is_over(now):
            detail = f"it ran into its time limit of {(self._limit.limit_ms or 0) / 1000:g} s"
            self._stop({"reason": "TIME_LIMIT", "final_state": "FAILED", "detail": detail}, self.spec["grace_ms"])
        elif self._limit.is_early_due(now):
            self._warn(now)

    def _warn(self, now: int) -> None:
        """The early signal: its time limit is near."""
        self._limit.warned()
        end = self._limit.end_ns()
        if self._task is None or end is None:
            return
        number, left_ms = self.spec["early_signal"], max(0, end - now) // MS
        detail = f"its time limit of {(self._limit.limit_ms or 0) / 1000:g} s is over in {left_ms / 1000:.0f} s"
        grace_ms = self.spec["grace_ms"]
        self._notice.tell("TIME_LIMIT", detail, signals.name_of(number), grace_ms, left_ms + grace_ms)
        if self.spec["early_signal_to_all"]:
            self._task.signal(number)
        else:
            # ours until we reap it
            os.kill(self._task_pid, number)

    def _set_limit(self, limit_ms: int) -> None:
        """The task has longer. A warning that it got is for an end that is not the end any more."""
        if limit_ms == self._limit.limit_ms:
            return
        self._limit.change(limit_ms, boot_ns())
        self._notice.clear()
        self._publish()

    def _stop(self, order: dict[str, Any], grace_ms: int) -> None:
        """Begin the end, or, if it began already, bring its SIGKILL forward. A task that is over by now keeps
        its own end.
        """
        self._reap()
        if self._end.over or self._task is None:
            return
        now = boot_ns()
        deadline = now + grace_ms * MS
        if not self._end.stopping:
            stop: tinyjson.Flat = {key: str(order[key]) for key in ("reason", "final_state", "detail")}
            self._note(records.STOP, stop)
            self._end.stop(stop)
            self._suspend(False)
            self._grace_deadline = deadline
            self._tell_stop(stop, grace_ms)
            if grace_ms > 0 and self._error_pipe < 0:
                self._terminate()
            self._publish()
        elif self._grace_deadline is not None:
            self._grace_deadline = min(self._grace_deadline, deadline)
        if now >= (self._grace_deadline or deadline):
            self._kill(now)

    def _tell_stop(self, stop: tinyjson.Flat, grace_ms: int) -> None:
        if grace_ms > 0:
            sigterm = signals.name_of(signals.SIGTERM)
            self._notice.tell(str(stop["reason"]), str(stop["detail"]), sigterm, grace_ms, grace_ms)

    @property
    def _suspend_pending(self) -> bool:
        return self._suspend_wanted and not self._end.suspended and self._end.running

    def _suspend_step(self, now: int) -> None:
        """Processes stop when the kernel next looks at them, so it may take several steps."""
        if not self._suspend_pending or now < self._next_suspend or self._task is None:
            return
        if self._task.suspend_step():
            self._end.suspended = True
            self._publish()
            return
        self._next_suspend = now + self._suspend_retry_ms * MS
        self._suspend_retry_ms = min(self._suspend_retry_ms * 2, SUSPEND_RETRY_LAST_MS)

    def _suspend(self, wanted: bool) -> None:
        if wanted == self._suspend_wanted:
            return
        self._suspend_wanted = wanted
        self._next_suspend, self._suspend_retry_ms = 0, SUSPEND_RETRY_FIRST_MS
        if not wanted and self._task is not None:
            self._task.resume()
            self._end.suspended = False
            self._publish()

    def _note(self, name: str, said: tinyjson.Flat) -> None:
        """Leave a word for whoever has to judge the attempt should this process be killed. A disk that does not
        take it must not end the shim, which would end the job as a failure that it was not.
        """
        try:
            records.note(self._dirfd, name, tinyjson.dumps(said))
        except OSError:
            return

    def _terminate(self) -> None:
        if self._task is not None:
            self._end.sent(signals.SIGTERM)
            self._task.terminate()

    def _kill(self, now: int) -> None:
        self._grace_deadline = None
        self._killed_at = now
        self._end.sent(signals.SIGKILL)
        # by its pid too, ours until we reap it: it may not have joined its groups yet
        os.kill(self._task_pid, signals.SIGKILL)
        self._clear(now)

    # -- the end

    def _clear(self, now: int) -> None:
        """Kill what is left, prove that it is gone, drain the streams, write the record."""
        if self._gone:
            self._record(now)
            return
        if now < self._next_kill or self._task is None:
            return
        self._killed_at = self._killed_at or now
        self._execs.kill_all()
        if self._task.end_step() and self._end.over and not self._execs.alive:
            self._gone = True
            self._output.drain()
            failpoint("shim.before_exit_record")
            self._record(now)
            return
        self._next_kill = now + self._kill_retry_ms * MS
        self._kill_retry_ms = min(self._kill_retry_ms * 2, KILL_RETRY_LAST_MS)
        if now - self._killed_at > STUCK_AFTER_NS and not self._end.stuck:
            self._end.mark_stuck(sorted(self._task.pids()), STUCK_AFTER_NS // (1000 * MS))
            self._publish()

    def _record(self, now: int) -> None:
        if now < self._next_record:
            return
        record = {**self.identity, **self._end.final(), **self._output.totals()}
        try:
            records.replace(self._dirfd, records.EXIT, tinyjson.dumps(record), "shim.exit_written")
        except OSError as error:
            # a full disk: the truth waits here until it can be written
            self._next_record = now + RECORD_RETRY_MS * MS
            self._end.note(f"the exit record cannot be written: {error.strerror}")
            self._publish()
            return
        self._recorded = True

    # -- agents

    def _obey(self, fd: int, order: dict[str, Any], passed: list[int]) -> None:
        op = order["op"]
        if op == "exec":
            may = self._end.running and not self._suspend_wanted
            self.peers.tell(fd, tinyjson.dumps(self._execs.start(order, passed, fd, may)))
        elif op == "stop":
            self._stop(order, max(0, int(order["grace_ms"])))
        elif op in ("suspend", "resume"):
            if not self._end.stopping:
                self._suspend(op == "suspend")
        elif op == "limit":
            if not self._end.stopping:
                self._set_limit(int(order["run_limit_ms"]))
        elif op == "tell":
            if not self._gone:
                self._output.tell(str(order["text"]))
        elif op == "end_exec":
            self._execs.end(str(order["id"]), boot_ns())
        elif op == "input":
            self._lend_input(fd, str(order["id"]))
        elif op == "close_input":
            self._output.close_input()

    def _lend_input(self, fd: int, request_id: str) -> None:
        """The descriptor itself: what is typed goes from the agent to the task without us."""
        lent = self._output.input_fd
        message = tinyjson.dumps({"event": "input", "id": request_id, "given": lent is not None})
        if lent is None:
            self.peers.tell(fd, message)
        else:
            self.peers.pass_on(fd, message, lent)

    def _peer_gone(self, fd: int) -> None:
        self._execs.peer_gone(fd, boot_ns())

    def _message(self) -> bytes:
        status = self._end.final() if self._recorded else self._end.current()
        can: tinyjson.Flat = {"suspends": True, "tells": True, "connects": True, "run_limit_ms": self._limit.limit_ms}
        return tinyjson.dumps({"event": "status", "task_pid": self._task_pid, **can, **self.identity, **status})

    def _publish(self) -> None:
        self.peers.tell_all(self._message())
