"""Put a daemon's files on a host, and take them away again: a plan first, then the writing of it.

Imports the configuration's parser for what the plan must fit, and the texts. Invariants: everything that can be refused
is refused before the first file is written; a configuration that is there is never overwritten; doing it again changes
nothing; state is never removed.
"""

from __future__ import annotations

import os
import pwd
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from gpushare.config import is_gpu_uuid
from gpushare.configfile import read_toml
from gpushare.errors import FailedPreconditionError, PermissionDeniedError, invalid_field
from gpushare.host import places, templates
from gpushare.host.places import below
from gpushare.host.systemd import Systemd
from gpushare.join import decode_agent_join
from gpushare.names import shown
from gpushare.reasons import Reason

SCHEDULER_USER = "gpushare"
# Agents and users are on other hosts as a rule; every caller needs a token, and all is TLS.
LISTEN = "0.0.0.0:7480"
START_LIMIT_S = 120.0

Say = Callable[[str], None]


class PlannedDir(NamedTuple):
    """Made with this mode and owner; one that is there keeps its mode."""

    path: str
    mode: int
    user: str = "root"


class PlannedFile(NamedTuple):
    """`keep`: one that is there belongs to the admin. `secret`: never shown."""

    path: str
    text: str
    mode: int = 0o644
    keep: bool = False
    secret: bool = False


class Plan(NamedTuple):
    """What one daemon needs, and the unit that runs it."""

    unit: str
    directories: tuple[PlannedDir, ...]
    files: tuple[PlannedFile, ...]
    notes: tuple[str, ...] = ()


# -- plans


def agent_plan(root: Path, join: str, managed_gpus: Sequence[str], profile: bool) -> Plan:
    """`join` is the line, "" where the host has one already; `managed_gpus` () where it was not said."""
    wrong = [card for card in managed_gpus if not is_gpu_uuid(card)]
    if wrong:
        raise invalid_field("--managed-gpus", f"{shown(wrong[0])} is no UUID of a card (`nvidia-smi -L` shows them)")
    config = below(root, places.AGENT_CONFIG)
    if config.exists() and managed_gpus:
        raise invalid_field("--managed-gpus", f"{config} is there already and is kept; set managed_gpus in it")
    notes: list[str] = []
    program = _program(root, "gpushare-agent", notes)
    files = [PlannedFile(places.AGENT_CONFIG, templates.agent_config(tuple(managed_gpus) or ("all",)), keep=True)]
    if join:
        files.append(PlannedFile(_join_path(config, join), join.strip() + "\n", 0o600, secret=True))
    elif not config.exists() and not below(root, places.AGENT_JOIN).exists():
        raise invalid_field("--join", "this host needs one; an admin gets it from `gpushare node join-token NODE`")
    files.append(PlannedFile(_unit_path(places.AGENT_UNIT), templates.agent_unit(program)))
    if profile:
        files.append(PlannedFile(places.PROFILE, templates.profile()))
    directories = (
        PlannedDir(places.CONFIG_DIR, 0o755),
        PlannedDir(places.STATE_DIR, 0o755),
        # Jobs pass through it on the way to their own directories.
        PlannedDir(places.AGENT_STATE, 0o711),
    )
    return Plan(places.AGENT_UNIT, directories, tuple(files), tuple(notes))


def _join_path(config: Path, join: str) -> str:
    """Where the agent will look for its join line: as a configuration that is there says, else the usual place."""
    decode_agent_join(join, "--join")
    if not config.exists():
        return places.AGENT_JOIN
    found = read_toml(config)
    said = found["join_file"].value if "join_file" in found else ""
    if isinstance(said, str) and said.startswith("/"):
        return said
    raise FailedPreconditionError(
        Reason.CONFIG_INVALID,
        f"{config} is kept, and it names no join_file",
        what_to_do=f'add join_file = "{places.AGENT_JOIN}" to it, and repeat',
    )


def scheduler_plan(root: Path, listen: str, advertise: str, user: str) -> Plan:
    """`listen` and `advertise` "" where they were not said; `user` "" is `gpushare` where there is one, else
    root."""
    config = below(root, places.SCHEDULER_CONFIG)
    if config.exists() and (listen or advertise):
        raise invalid_field("--listen", f"{config} is there already and is kept; set listen and advertise in it")
    notes: list[str] = []
    if not user:
        user = SCHEDULER_USER if root == Path("/") and _account_exists(SCHEDULER_USER) else "root"
        if user == "root":
            notes.append(
                "it will run as root; an account of its own is better: "
                f"`useradd --system --home-dir {places.SCHEDULER_STATE} --shell /usr/sbin/nologin {SCHEDULER_USER}`, "
                "and repeat this"
            )
    elif root == Path("/") and not _account_exists(user):
        raise invalid_field("--user", f"there is no account {user!r} on this host")
    _check_owner(root, places.SCHEDULER_STATE, user)
    program = _program(root, "gpushare-scheduler", notes)
    directories = (
        PlannedDir(places.CONFIG_DIR, 0o755),
        PlannedDir(places.STATE_DIR, 0o755),
        PlannedDir(places.SCHEDULER_STATE, 0o700, user),
    )
    files = (
        PlannedFile(places.SCHEDULER_CONFIG, templates.scheduler_config(listen or LISTEN, advertise), keep=True),
        PlannedFile(_unit_path(places.SCHEDULER_UNIT), templates.scheduler_unit(program, user)),
    )
    return Plan(places.SCHEDULER_UNIT, directories, files, tuple(notes))


def _check_owner(root: Path, path: str, user: str) -> None:
    """State that another account wrote cannot be used by this one."""
    if root != Path("/") or not Path(path).is_dir() or not any(Path(path).iterdir()):
        return
    owner = pwd.getpwuid(Path(path).stat().st_uid).pw_name
    if owner != user:
        raise FailedPreconditionError(
            Reason.CONFIG_INVALID,
            f"{path} belongs to {owner}, and the scheduler is to run as {user}",
            what_to_do=f"Stop it, then `chown -R {user}: {path}`, or keep the account with --user {owner}",
        )


def _account_exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _unit_path(unit: str) -> str:
    return f"{places.UNIT_DIR}/{unit}"


def _program(root: Path, name: str, notes: list[str]) -> str:
    """Through the `current` link; without one, the program beside the running Python."""
    if root != Path("/") or below(root, places.CURRENT).exists():
        return f"{places.CURRENT}/bin/{name}"
    notes.append(
        f"this installation is not below {places.INSTALL_DIR}: `gpushare host upgrade` cannot upgrade it "
        "(deploy/install.sh makes one that it can)"
    )
    return str(Path(sys.executable).parent / name)


# -- carrying out


def show(plan: Plan, root: Path, say: Say) -> None:
    """What `carry_out` would do; nothing is written."""
    for each in plan.directories:
        say(f"# directory {below(root, each.path)} mode {each.mode:04o} owner {each.user}")
    for file in plan.files:
        kept = ", kept: it is there already" if file.keep and below(root, file.path).exists() else ""
        say(f"# file {below(root, file.path)} mode {file.mode:04o}{kept}")
        say("(a secret)" if file.secret else file.text.rstrip("\n"))
    _say_notes(plan, say)


def carry_out(plan: Plan, root: Path, now: bool, say: Say) -> None:
    """Write it, say of each file what became of it, and what comes next; `now` starts the unit at once."""
    systemd = Systemd(root)
    _refuse_unless_able(root, now, systemd)
    for directory in plan.directories:
        _make(below(root, directory.path), directory, root)
    changed = False
    for file in plan.files:
        outcome = _write(below(root, file.path), file)
        changed |= outcome == "written"
        say(f"{outcome}: {below(root, file.path)}")
    _say_notes(plan, say)
    if systemd.runs and changed:
        _command(systemd, "daemon-reload")
    if not now:
        say(f"next: systemctl enable --now {plan.unit.removesuffix('.service')}")
        return
    _command(systemd, "enable", "--now", plan.unit)
    say(f"started: {plan.unit}")


def uninstall(unit: str, root: Path, say: Say) -> None:
    """Stop the daemon and remove its unit; configuration, state, output and running jobs stay."""
    systemd = Systemd(root)
    _refuse_unless_able(root, False, systemd)
    unit_path = below(root, _unit_path(unit))
    if systemd.runs and systemd.is_installed(unit):
        _command(systemd, "disable", "--now", unit)
        say(f"stopped: {unit}" + ("; its jobs run on to their end" if unit == places.AGENT_UNIT else ""))
    for path in (unit_path, *([below(root, places.PROFILE)] if unit == places.AGENT_UNIT else [])):
        if path.exists():
            path.unlink()
            say(f"removed: {path}")
    if systemd.runs:
        _command(systemd, "daemon-reload")
    agent = unit == places.AGENT_UNIT
    config, state = (
        (places.AGENT_CONFIG, places.AGENT_STATE) if agent else (places.SCHEDULER_CONFIG, places.SCHEDULER_STATE)
    )
    left = [str(below(root, path)) for path in (config, state) if below(root, path).exists()]
    if left:
        say(f"left: {', '.join(left)} (to be rid of them too: rm -r {' '.join(left)})")


def _refuse_unless_able(root: Path, now: bool, systemd: Systemd) -> None:
    if root == Path("/") and os.geteuid() != 0:
        raise PermissionDeniedError(
            Reason.PERMISSION_DENIED,
            "Only root installs a daemon on this host.",
            what_to_do="Use sudo; `gpushare up` needs no root and no installation.",
        )
    if now and not systemd.runs:
        raise invalid_field("--now", "systemd is not the init of this host; start the daemon as your init does it")


def _say_notes(plan: Plan, say: Say) -> None:
    for note in plan.notes:
        say(f"note: {note}")


def _make(path: Path, planned: PlannedDir, root: Path) -> None:
    if not path.is_dir():
        path.mkdir(parents=True)
        path.chmod(planned.mode)
    if planned.user != "root" and root == Path("/"):
        shutil.chown(path, planned.user)


def _write(path: Path, planned: PlannedFile) -> str:
    """ "written", "kept" or "unchanged"."""
    if path.exists():
        if planned.keep:
            return "kept"
        if path.read_text(errors="replace") == planned.text and path.stat().st_mode & 0o7777 == planned.mode:
            return "unchanged"
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(planned.text)
        os.fchmod(file.fileno(), planned.mode)
    os.replace(beside, path)
    return "written"


def _command(systemd: Systemd, *arguments: str) -> None:
    code, said = systemd.call(*arguments, limit_s=START_LIMIT_S)
    if code != 0:
        raise FailedPreconditionError(
            Reason.CONFIG_INVALID,
            f"systemctl {' '.join(arguments)} ended with {code}: {said or 'it said nothing'}",
            what_to_do=f"What was written stays; look at `journalctl -e -u {arguments[-1]}`.",
        )
