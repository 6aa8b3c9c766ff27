"""The forked child's way from the shim to the job's own program: confine, become the user, verify, exec.

Runs in the child of a shim and never returns. Imports the shims' small modules alone. Any step that fails
ends the child before the job's program could start; what failed goes up the error pipe as one flat JSON
object {stage, errno, text, exit_code}. A closed pipe without a word means that the exec went through.
"""

from __future__ import annotations

import errno
import os

from gpushare_agent import cgroupfs, signals, syscalls, tinyjson
from gpushare_agent.failpoints import failpoint
from gpushare_agent.procscan import TAG_NAME

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` and `collections.abc` would cost this process a mebibyte
    from typing import Any, NoReturn

# what a shim ignores, and its task does not
DEAF_TO = (signals.SIGINT, signals.SIGTERM, signals.SIGHUP, signals.SIGQUIT, signals.SIGTTOU)
NOT_FOUND_CODE = 127
NOT_EXECUTABLE_CODE = 126
DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"
JOB_UMASK = 0o022
NEW_FILE_MODE = 0o666
ERROR_PIPE = 3
MAX_DESCRIPTORS = 1 << 20


class Plan:
    """What the child needs: the intent as read from disk, the shim's pid, its three streams, and the error pipe."""

    def __init__(self, intent: dict[str, Any], shim_pid: int, streams: tuple[int, int, int], error_pipe: int) -> None:
        self.intent = intent
        self.shim_pid = shim_pid
        self.stdin, self.stdout, self.stderr = streams
        self.error_pipe = error_pipe


class _Failed(Exception):
    """A step that failed, in words for the job's owner."""

    def __init__(self, stage: str, number: int, text: str, exit_code: int | None = None) -> None:
        super().__init__(text)
        self.stage = stage
        self.number = number
        self.text = text
        self.exit_code = exit_code


def become(plan: Plan) -> NoReturn:
    """Turn the calling process, a fresh fork of the shim, into the job's program."""
    stage = "session"
    pipe = plan.error_pipe
    try:
        _live_with(plan.shim_pid)
        os.setsid()
        _reset_signals()
        stage = "containment"
        _enter_groups(plan.intent["groups"])
        failpoint("task.joined")
        stage = "streams"
        pipe = _take_streams(plan)
        stage = "privileges"
        _drop(plan.intent["spec"]["user"])
        if plan.intent["spec"]["user"] is not None:
            # a change of user clears the parent-death signal
            _live_with(plan.shim_pid)
        syscalls.no_new_privileges()
        stage = "workdir"
        _enter_directory(plan.intent["spec"])
        stage = "output"
        _open_outputs(plan.intent["spec"])
        stage = "exec"
        failpoint("task.before_exec")
        _exec(plan.intent)
    except _Failed as failed:
        _report(pipe, failed)
    except OSError as error:
        _report(pipe, _Failed(stage, error.errno or 0, str(error)))
    except (ValueError, KeyError, TypeError) as error:
        _report(pipe, _Failed(stage, errno.EINVAL, f"{type(error).__name__}: {error}"))
    os._exit(NOT_FOUND_CODE)


def _report(error_pipe: int, failed: _Failed) -> None:
    record: tinyjson.Flat = {
        "stage": failed.stage,
        "errno": failed.number,
        "text": failed.text,
        "exit_code": failed.exit_code,
    }
    os.write(error_pipe, tinyjson.dumps(record))


def _live_with(shim_pid: int) -> None:
    """Die when the shim dies, also if it died before we asked for that."""
    syscalls.die_with_parent()
    if os.getppid() != shim_pid:
        os._exit(NOT_FOUND_CODE)


def _reset_signals() -> None:
    # Python ignores two of them, the launcher the rest; the job starts with none ignored or blocked
    signals.restore((signals.SIGPIPE, signals.SIGXFSZ, *DEAF_TO))


def _enter_groups(groups: dict[str, Any] | None) -> None:
    """Join the attempt's task groups, then believe the kernel and not ourselves about it."""
    if int(cgroupfs.get("/proc/self/oom_score_adj")) < 0:
        # an agent that the OOM killer spares must not pass that on
        cgroupfs.put("/proc/self/oom_score_adj", "0")
    if groups is None:
        return
    for place in groups["task"]:
        cgroupfs.join(place["directory"])
    actual = cgroupfs.memberships()
    for place in groups["task"]:
        for controller in place["controllers"]:
            if actual.get(controller) != place["proc_path"]:
                text = f"the kernel shows {actual.get(controller)} and not {place['proc_path']} for '{controller}'"
                raise _Failed("containment", errno.EXDEV, text)


def _take_streams(plan: Plan) -> int:
    """Descriptors 0 to 2 are the job's from here on, the error pipe is 3, and there is no other. Returns the 3."""
    user = plan.intent["spec"]["user"]
    if user is not None:
        # else the job could not reopen its own /dev/stdout
        for fd in {plan.stdout, plan.stderr}:
            os.fchown(fd, user["uid"], user["gid"])
    if plan.intent["spec"]["pty"]:
        # the session's terminal, and all three streams
        os.login_tty(plan.stdin)
    else:
        for fd, target in ((plan.stdin, 0), (plan.stdout, 1), (plan.stderr, 2)):
            os.dup2(fd, target, inheritable=True)
    os.dup2(plan.error_pipe, ERROR_PIPE, inheritable=False)
    # everything is close-on-exec already; this holds for what a future library may forget
    os.closerange(ERROR_PIPE + 1, MAX_DESCRIPTORS)
    return ERROR_PIPE


def _drop(user: dict[str, Any] | None) -> None:
    """Become the user for good and prove it."""
    os.umask(JOB_UMASK)
    if user is None:
        return
    failpoint("task.drop")
    uid, gid, groups = user["uid"], user["gid"], list(user["groups"])
    if uid == 0:
        raise _Failed("privileges", errno.EPERM, "the job's user is root")
    was_root = os.geteuid() == 0
    if was_root:
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        if set(os.getgroups()) != set(groups):
            raise _Failed("privileges", errno.EPERM, f"groups are {os.getgroups()} and not {groups}")
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid):
        text = f"uids are {os.getresuid()} and gids {os.getresgid()}, wanted {uid} and {gid}"
        raise _Failed("privileges", errno.EPERM, text)
    for line in cgroupfs.get("/proc/self/status").splitlines() if was_root else ():
        if line.startswith(("CapEff:", "CapPrm:", "CapAmb:")) and int(line.split()[1], 16):
            raise _Failed("privileges", errno.EPERM, f"capabilities were left: {line}")


def _enter_directory(spec: dict[str, Any]) -> None:
    path = spec["cwd"]
    try:
        os.chdir(path)
    except OSError as error:
        node = spec["env"].get("GPUSHARE_NODE")
        text = f"{path}{f' on node {node}' if node else ''}: {error.strerror}"
        raise _Failed("workdir", error.errno or 0, text) from None


def _open_outputs(spec: dict[str, Any]) -> None:
    """Put the files that the job named in the place of the pipes: as its user, so that the kernel decides."""
    output, error = spec["output_path"], spec["error_path"]
    if output:
        _open_output(output, (1,) if error else (1, 2))
    if error:
        _open_output(error, (2,))


def _open_output(path: str, targets: tuple[int, ...]) -> None:
    # a named pipe that nobody reads would hold the launch for ever: without waiting its open fails
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, NEW_FILE_MODE)
    except OSError as error:
        raise _output_failed(path, error) from None
    os.set_blocking(fd, True)
    for target in targets:
        os.dup2(fd, target, inheritable=True)
    os.close(fd)


def _output_failed(path: str, error: OSError) -> _Failed:
    number = error.errno or 0
    text = f"the output file {path} could not be opened: {os.strerror(number)} ({errno.errorcode.get(number, number)})"
    directory = os.path.dirname(path)
    if number == errno.ENOENT and directory and not os.path.exists(directory):
        text += "; its directory is not there, make it first"
    return _Failed("output", number, text)


def _exec(intent: dict[str, Any]) -> NoReturn:
    spec = intent["spec"]
    environment = dict(spec["env"])
    environment[TAG_NAME] = intent["tag"]
    if intent["script"] is not None:
        argv = [intent["script"], *spec["argv"][1:]]
        candidates = [intent["script"]]
    else:
        argv = list(spec["argv"])
        candidates = _candidates(argv[0], environment.get("PATH") or DEFAULT_PATH)
    failure: OSError | None = None
    for path in candidates:
        try:
            os.execve(path, argv, environment)
        except (FileNotFoundError, NotADirectoryError) as error:
            if os.path.exists(path):
                raise _interpreter_failed(path, error) from None
            failure = failure or error
        except OSError as error:
            # like a shell: a later entry of PATH may still hold one that runs
            failure = error
    raise _exec_failed(argv[0], failure)


def _candidates(name: str, search: str) -> list[str]:
    if "/" in name:
        return [name]
    return [os.path.join(directory or ".", name) for directory in search.split(":")]


def _exec_failed(name: str, error: OSError | None) -> _Failed:
    number = error.errno if error is not None and error.errno else errno.ENOENT
    reason = os.strerror(number)
    if number in (errno.ENOENT, errno.ENOTDIR):
        return _Failed("exec", number, f"{name}: {reason}", NOT_FOUND_CODE)
    if number == errno.ENOEXEC:
        reason += " (neither a program for this machine nor a script that begins with #!)"
    elif number == errno.EACCES and os.path.isdir(name):
        reason += " (it is a directory)"
    return _Failed("exec", number, f"{name}: {reason}", NOT_EXECUTABLE_CODE)


def _interpreter_failed(path: str, error: OSError) -> _Failed:
    """The file is there, so what is missing is what should run it."""
    number = error.errno or errno.ENOENT
    first_line = b""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        first_line = os.read(fd, 256).partition(b"\n")[0]
        os.close(fd)
    except OSError:
        first_line = b""
    if not first_line.startswith(b"#!"):
        return _Failed("exec", number, f"{path}: its loader: {os.strerror(number)}", NOT_EXECUTABLE_CODE)
    interpreter = first_line[2:].decode(errors="replace")
    text = f"{path}: its interpreter {interpreter.strip()!r}: {os.strerror(number)}"
    if interpreter.endswith("\r"):
        text += " (the file has Windows line ends: CRLF)"
    return _Failed("exec", number, text, NOT_EXECUTABLE_CODE)
