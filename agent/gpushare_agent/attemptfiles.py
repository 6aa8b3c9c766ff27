"""The directories of attempts: made before a launch, removed when the attempt is forgotten.

Imports the standard library, this package's vocabulary and its groups. Under the state directory:
`attempts/<id>/` (records, 0700; on their way out in `forgotten/<id>`), `logs/<id>/` (0700, outlives the
attempt and marks its id as used), `scripts/<id>/` (entered by the job's user, who alone may read the file),
`notices/<id>/` (the agent's own, too: what the task is told of its end; its shim makes it once there is something
to tell) and `private/<id>/` (the job's user's own). Nothing a job can write to is ever opened, changed or
removed by path: what is the user's lies below a directory that only the agent can write.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gpushare.reasons import Reason
from gpushare_agent import cgroups, checkpoint, farapart, records, stopnotice, treeremoval
from gpushare_agent.checkpoint import Intent
from gpushare_agent.failpoints import failpoint
from gpushare_agent.launchspec import LaunchRefused, LaunchSpec, UnixUser

SCRIPT_NAME_CHARACTERS = 100
DIRECTORIES = {
    "attempts": 0o700,
    "forgotten": 0o700,
    "logs": 0o700,
    "scripts": 0o711,
    "private": 0o711,
    "notices": 0o711,
}
# What an attempt has beside its records and its logs.
BESIDE = ("scripts", "private", "notices")


@dataclass(frozen=True)
class AttemptFiles:
    """Where attempts live, for one agent instance; `layout` None is weak containment."""

    state_dir: Path
    instance_id: str
    boot_id: str
    layout: cgroups.Layout | None

    def prepare_root(self) -> None:
        """Make the directories with their modes."""
        self.state_dir.mkdir(parents=True, exist_ok=True)
        farapart.put_far_apart(self.state_dir)
        for name, mode in DIRECTORIES.items():
            path = self.state_dir / name
            path.mkdir(mode=mode, exist_ok=True)
            if stat.S_IMODE(path.stat().st_mode) != mode:
                path.chmod(mode)

    def directory(self, attempt_id: str) -> Path:
        """The attempt's records."""
        return self.state_dir / "attempts" / attempt_id

    def log_dir(self, attempt_id: str) -> Path:
        """What the task printed."""
        return self.state_dir / "logs" / attempt_id

    def private_dir(self, attempt_id: str) -> Path:
        """The directory that the job may write to."""
        return self.state_dir / "private" / attempt_id

    def stop_notice(self, attempt_id: str) -> Path:
        """Where the task finds that it will be stopped, once it will."""
        return self.state_dir / "notices" / attempt_id / stopnotice.NAME

    def _place(self, kind: str, name: str) -> str:
        return f"{self.state_dir}/{kind}/{name}"

    def tag(self, attempt_id: str) -> str:
        """What the environment of every process of the attempt carries: unique on this host."""
        return f"{self.instance_id}/{attempt_id}"

    def attempts(self) -> list[str]:
        """Every attempt that has a directory."""
        entries = os.scandir(self.state_dir / "attempts")
        return sorted(
            entry.name
            for entry in entries
            if checkpoint.valid_attempt_id(entry.name)
            and entry.is_dir(follow_symlinks=False)
            and entry.stat(follow_symlinks=False).st_uid == os.geteuid()
        )

    def prepare(self, spec: LaunchSpec) -> Intent:
        """Make the durable intent, then everything else an attempt needs before its shim. Raises LaunchRefused;
        what was made stays for `discard`.
        """
        attempt_id = spec.attempt_id
        # plain texts in here and in `discard`: to build a Path costs more than many of the calls made with it
        log_dir = self._place("logs", attempt_id)
        if os.path.exists(log_dir):
            raise LaunchRefused(Reason.STALE_ATTEMPT, f"attempt {attempt_id} was launched here before")
        _check_reachable(self.state_dir, spec)
        failpoint("agent.before_intent")
        intent = self._intent(spec)
        directory = self._place("attempts", attempt_id)
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            raise LaunchRefused(Reason.STALE_ATTEMPT, f"attempt {attempt_id} has records here already") from None
        except OSError as error:
            raise LaunchRefused(Reason.INFRA, f"the launch could not be prepared: {error}") from None
        try:
            dirfd = records.open_directory(directory)
            try:
                checkpoint.write_intent(dirfd, intent)
            finally:
                os.close(dirfd)
            failpoint("agent.after_intent")
            os.mkdir(log_dir, 0o700)
            self._place_script(spec, intent)
            if spec.private_dir:
                _make_owned(self.private_dir(attempt_id), spec.user)
            if self.layout is not None and intent.groups is not None:
                cgroups.create(self.layout, intent.groups, spec)
            failpoint("agent.after_groups")
        except cgroups.LimitsRefused as error:
            raise LaunchRefused(Reason.FENCE_FAILED, str(error)) from None
        except OSError as error:
            raise LaunchRefused(Reason.INFRA, f"the launch could not be prepared: {error}") from None
        return intent

    def make_private_dir(self, attempt_id: str, user: UnixUser | None) -> None:
        """Where there is none yet; one that was made and not yet given to the user is given now. Raises OSError."""
        path = self.private_dir(attempt_id)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        _give(path, user)

    def discard(self, attempt_id: str, keep_logs: bool) -> bool:
        """Remove what an attempt that has no process has; repeatable. False if a control group is still in use:
        the records stay then, so that the next try finds it.
        """
        for name in BESIDE:
            treeremoval.remove(self._place(name, attempt_id))
        if self.layout is not None and not cgroups.remove(cgroups.describe(self.layout, attempt_id)):
            return False
        if keep_logs:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self._place("logs", attempt_id), 0o700)
        else:
            shutil.rmtree(self.log_dir(attempt_id), ignore_errors=True)
        if keep_logs:
            # deleted later (see delete_forgotten); the name is new even if this id was refused once before
            with contextlib.suppress(FileNotFoundError):
                forgotten = self._place("forgotten", f"{attempt_id}.{time.time_ns()}")
                os.rename(self._place("attempts", attempt_id), forgotten)
        else:
            shutil.rmtree(self.directory(attempt_id), ignore_errors=True)
        return True

    def delete_forgotten(self, unless_at_most: int = 0) -> None:
        """Delete the records of forgotten attempts, many at once, unless they are few: a file system that just deleted
        files is slow to make new ones (ext4 passes over inodes freed in the last minutes), and while attempts
        come one after the other nobody should wait for that.
        """
        if not (self.state_dir / "forgotten").exists():
            return
        names = os.listdir(self.state_dir / "forgotten")
        for name in names if len(names) > unless_at_most else ():
            shutil.rmtree(self.state_dir / "forgotten" / name, ignore_errors=True)

    def sweep(self, known: set[str]) -> None:
        """Remove scripts and private directories that belong to no attempt any more."""
        for name in BESIDE:
            for entry in os.listdir(self.state_dir / name):
                if entry not in known:
                    treeremoval.remove(self.state_dir / name / entry)

    def _intent(self, spec: LaunchSpec) -> Intent:
        groups = cgroups.describe(self.layout, spec.attempt_id, spec) if self.layout is not None else None
        script = None
        if spec.script is not None:
            script = str(self.state_dir / "scripts" / spec.attempt_id / _script_name(spec.argv[0]))
        return Intent(
            boot_id=self.boot_id,
            containment=self.layout.containment if self.layout is not None else "weak",
            tag=self.tag(spec.attempt_id),
            log_dir=self._place("logs", spec.attempt_id),
            script=script,
            groups=groups,
            spec=msgspec.structs.replace(spec, script=None),
            notice_dir=self._place("notices", spec.attempt_id),
        )

    def _place_script(self, spec: LaunchSpec, intent: Intent) -> None:
        if spec.script is None or intent.script is None:
            return
        path = Path(intent.script)
        _make_open(path.parent)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o500)
        with os.fdopen(fd, "wb") as file:
            file.write(spec.script)
            file.flush()
            if spec.user is not None and os.geteuid() == 0:
                os.fchown(fd, spec.user.uid, spec.user.gid)
            os.fchmod(fd, 0o500)


def _script_name(argument: str) -> str:
    name = os.path.basename(argument)[:SCRIPT_NAME_CHARACTERS]
    return name if name not in ("", ".", "..") else "script"


def _make_open(path: Path) -> None:
    """Ours, and to be entered by everybody, whatever the umask is."""
    path.mkdir(mode=0o711)
    path.chmod(0o711)


def _make_owned(path: Path, user: UnixUser | None) -> None:
    path.mkdir(mode=0o700)
    _give(path, user)


def _give(directory: Path, user: UnixUser | None) -> None:
    if user is None or os.geteuid() != 0:
        return
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchown(fd, user.uid, user.gid)
    finally:
        os.close(fd)


def _check_reachable(state_dir: Path, spec: LaunchSpec) -> None:
    """A script or private directory is of no use to a user who may not pass the directories above it."""
    if spec.user is None or (spec.script is None and not spec.private_dir):
        return
    cause = why_out_of_reach(state_dir, spec.user)
    if cause:
        raise LaunchRefused(Reason.LAUNCH_DENIED, cause)


def why_out_of_reach(directory: Path, user: UnixUser) -> str:
    """Why `user` may not enter a directory of the agent's; "" if nothing stands in the way."""
    for path in (*reversed(directory.parents), directory):
        found = path.stat()
        if found.st_uid == user.uid:
            bit = stat.S_IXUSR
        elif found.st_gid in (user.gid, *user.groups):
            bit = stat.S_IXGRP
        else:
            bit = stat.S_IXOTH
        if not found.st_mode & bit:
            return f"user {user.name} may not enter {path}, below which the job's files are (chmod 0711 it)"
    return ""
