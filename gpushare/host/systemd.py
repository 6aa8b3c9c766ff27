"""systemd, as far as an installation needs it: commands to it, and what a unit would do to the jobs.

Imports the standard library. Works without systemd: then there is nothing to command, and what a unit says is read
from its file. Invariant: no call waits longer than its limit.
"""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from gpushare.host.places import UNIT_DIR, below

ASK_LIMIT_S = 5.0
UNIT_DIRS = ("/usr/lib/systemd/system", "/lib/systemd/system", "/run/systemd/system", UNIT_DIR)


class UnitSettings(NamedTuple):
    """What decides whether a unit's jobs outlive it. The values are systemd's own words."""

    unit: str
    kill_mode: str
    delegate: bool


class Systemd:
    """The systemd of this host, or of a root below which everything is looked for."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    @property
    def runs(self) -> bool:
        """systemd is the init of this host (what `sd_booted` looks at)."""
        return below(self._root, "/run/systemd/system").is_dir() and shutil.which("systemctl") is not None

    def call(self, *arguments: str, limit_s: float = ASK_LIMIT_S) -> tuple[int, str]:
        """`systemctl ARGUMENTS`: its code (124 where it took too long) and what it said."""
        try:
            done = subprocess.run(
                ["systemctl", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit_s
            )
        except FileNotFoundError:
            return 127, "systemctl is not installed"
        except subprocess.TimeoutExpired:
            return 124, f"systemctl {' '.join(arguments)} did not end within {limit_s:g} s"
        return done.returncode, (done.stdout + done.stderr).strip()

    def is_active(self, unit: str) -> bool:
        """It runs, or is on its way up."""
        return self.runs and self.call("is-active", unit)[1].split("\n")[0] in ("active", "activating", "reloading")

    def is_installed(self, unit: str) -> bool:
        """There is a file for it."""
        return any(below(self._root, f"{place}/{unit}").is_file() for place in UNIT_DIRS)

    def settings(self, unit: str, user: bool = False) -> UnitSettings | None:
        """What systemd says of the unit, else its file; None where neither knows it. `user`: a user's own."""
        scope = ("--user",) if user else ()
        code, said = self.call(*scope, "show", "-p", "KillMode", "-p", "Delegate", "-p", "LoadState", unit)
        values = dict(line.partition("=")[::2] for line in said.splitlines())
        if code == 0 and values.get("LoadState") == "loaded":
            return UnitSettings(unit, values.get("KillMode", ""), values.get("Delegate") == "yes")
        return self._from_file(unit)

    def _from_file(self, unit: str) -> UnitSettings | None:
        """The last file that has a say wins, drop-ins after the unit itself."""
        places = [below(self._root, place) for place in UNIT_DIRS]
        files = [place / unit for place in places if (place / unit).is_file()][-1:]
        if not files:
            return None
        for place in places:
            files += sorted((place / f"{unit}.d").glob("*.conf"))
        values = {"KillMode": "control-group", "Delegate": "no"}
        for file in files:
            values.update({key: value for key, value in _service_section(file).items() if value.isprintable()})
        delegate = values["Delegate"].lower() not in ("no", "false", "0", "off", "")
        return UnitSettings(unit, values["KillMode"], delegate)


def _service_section(file: Path) -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None, strict=False, delimiters=("=",))
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    try:
        parser.read_string(file.read_text(errors="replace"))
    except (OSError, configparser.Error):
        return {}
    return dict(parser["Service"]) if parser.has_section("Service") else {}


def unit_of(cgroups: str) -> tuple[str, bool] | None:
    """The service that a process belongs to, by the text of its /proc/PID/cgroup, and whether it is one of a user's own
    manager; None for a process of a login session, a container or a shell."""
    paths = {}
    for line in cgroups.splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" or controllers == "name=systemd":
            paths[controllers] = path
    # Where the kernel has both, a unit's processes are in v2 too, unless systemd counts them in v1 alone.
    for path in (paths.get("", ""), paths.get("name=systemd", "")):
        units = [part for part in path.split("/") if part.endswith((".service", ".scope"))]
        if not units:
            continue
        unit = units[-1]
        if unit.endswith(".scope") or re.fullmatch(r"user@\d+\.service", unit):
            return None
        return unit, any(re.fullmatch(r"user@\d+\.service", part) for part in units[:-1])
    return None


def why_jobs_die(found: UnitSettings) -> Iterable[str]:
    """One sentence for each thing about a unit that would harm the jobs of the agent in it, with what mends it."""
    again = "write the unit anew with `gpushare-agent install`"
    if found.kill_mode not in ("process", "none"):
        yield (
            f"{found.unit} has KillMode={found.kill_mode}: stopping or restarting it kills running jobs, or the MPS "
            f"servers under them (set KillMode=process in [Service], or {again})"
        )
    if not found.delegate:
        yield (
            f"{found.unit} has Delegate=no: systemd may take the limits and groups of running jobs away (set "
            f"Delegate=yes in [Service], or {again})"
        )


def own_unit_warnings(cgroups: str, systemd: Systemd) -> tuple[str, ...]:
    """What the unit that this very process runs in would do to its jobs. `cgroups` is /proc/self/cgroup."""
    own = unit_of(cgroups)
    found = systemd.settings(own[0], user=own[1]) if own is not None else None
    return tuple(why_jobs_die(found)) if found is not None else ()
