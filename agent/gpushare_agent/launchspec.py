"""What an attempt is to run with, and how it stands: the executor's vocabulary.

Imports msgspec and `gpushare.reasons` alone, so that the agent's pure core may use it. Every struct is frozen. A
`LaunchSpec` is what stands on disk as the intent (JSON); an `AttemptStatus` is what the executor reports. Times named
`_ms` are wall time in milliseconds, durations are milliseconds too; leases are nanoseconds of CLOCK_BOOTTIME.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from gpushare.reasons import Reason

OnDisconnect = Literal["keep", "stop_and_requeue"]
AttemptState = Literal["LAUNCHING", "RUNNING", "SUSPENDED", "STOPPING", "SUCCEEDED", "FAILED", "STOPPED"]
Containment = Literal["cgroup-v2", "hybrid", "weak"]

FINAL_STATES = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})


class UnixUser(msgspec.Struct, frozen=True):
    """The person a job runs as, resolved through NSS before the launch (see `unixuser.resolve`)."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str
    home: str
    shell: str


class LaunchSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything one attempt needs, final: the executor adds nothing to `env` but its own GPUSHARE_ATTEMPT_TAG.

    `script`, when given, is stored beside the attempt and run instead of looking `argv[0]` up; the process
    sees the stored path as its argv[0]. `user` None means "as the agent's own user", which a root executor
    refuses unless it was told `run_as_self`. `run_limit_ms` counts from the exec, `grace_ms` from the
    SIGTERM. `early_signal` (a number) is sent `early_signal_ms` before the run limit, to the first process or to all.
    `host_memory_mib`, `cpu_milli` and `pids_max` need cgroups and are not enforced under weak
    containment. `denied_devices` are (major, minor) pairs of character devices the job must not open; None
    means no filter. `output_path` and `error_path` name files that stdout and stderr are appended to, opened as the
    job's user from `cwd`; stderr follows stdout where only the first is given, and what has no file goes to the
    attempt's log. `stdin` gives the task an input that is written to through channels, and `window_rows` and
    `window_columns` (0: the usual ones) size its terminal. `private_dir` asks for a directory of the job's user
    (`Executor.private_dir(attempt_id)`), removed when the attempt is forgotten.
    """

    attempt_id: str
    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    log_cap_bytes: int
    script: bytes | None = None
    user: UnixUser | None = None
    pty: bool = False
    stdin: bool = False
    window_rows: int = 0
    window_columns: int = 0
    run_limit_ms: int | None = None
    grace_ms: int = 10_000
    early_signal: int | None = None
    early_signal_ms: int | None = None
    early_signal_to_all: bool = False
    on_disconnect: OnDisconnect = "keep"
    host_memory_mib: int | None = None
    cpu_milli: int | None = None
    pids_max: int | None = None
    denied_devices: tuple[tuple[int, int], ...] | None = None
    private_dir: bool = False
    output_path: str = ""
    error_path: str = ""


class AttemptStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How an attempt stands, or how it ended; the last one of an attempt is durable before it is reported.

    `exit_code` is the main process's own (or 127/126 of a failed exec), `signal` the one that ended it,
    `stop_signal` the last one we sent it. `detail` is one sentence with figures. `stuck` says that processes
    of the attempt outlived SIGKILL by more than a minute: the attempt still counts as alive and its node
    wants draining.
    """

    attempt_id: str
    state: AttemptState
    boot_id: str
    reason: Reason | None = None
    exit_code: int | None = None
    signal: int | None = None
    stop_signal: int | None = None
    detail: str = ""
    started_ms: int | None = None
    ended_ms: int | None = None
    stuck: bool = False

    @property
    def final(self) -> bool:
        """True once the attempt is proven over."""
        return self.state in FINAL_STATES


class LaunchRefused(Exception):
    """The attempt was not started and left nothing behind; `reason` and `detail` say why."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
