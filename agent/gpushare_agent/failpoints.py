"""Named crash points: a test makes the process that reaches one die as if by kill -9, or fail, at exactly that
step.

Imports os alone; the launcher and the shims load it. Nothing happens unless GPUSHARE_FAILPOINT was in the
environment when the process started (`name:kill`, `name:error` or `name:hang:/file`); the value is read once, so
that an upgrade or a job cannot change it.
"""

from __future__ import annotations

import errno
import os
import time

ENVIRONMENT_NAME = "GPUSHARE_FAILPOINT"

NAMES = (
    "agent.before_intent",
    "agent.torn_intent",
    "agent.after_intent",
    "agent.after_groups",
    "agent.before_order",
    "agent.after_order",
    "agent.owned",
    "launcher.before_fork",
    "launcher.after_fork",
    "shim.started",
    "shim.bound",
    "shim.torn_exec_record",
    "shim.exec_recorded",
    "shim.task_forked",
    "shim.task_exited",
    "shim.before_exit_record",
    "shim.exit_written",
    "shim.exit_recorded",
    "task.joined",
    "task.drop",
    "task.before_exec",
)

_name, _action, _path = (os.environ.get(ENVIRONMENT_NAME, "") + "::").split(":")[:3]


def failpoint(name: str) -> None:
    """Die by SIGKILL, raise OSError(EPERM), or wait while a file exists, if `name` is the armed point."""
    if name != _name:
        return
    if _action == "kill":
        os.kill(os.getpid(), 9)
    elif _action == "error":
        raise OSError(errno.EPERM, f"failpoint {name}")
    elif _action == "hang":
        while os.path.exists(_path):
            time.sleep(0.01)
