"""A head and eight servers for a page, on one machine: `ssh root@gpu01 ...` does it in a host of its own.

Each host is a mount namespace with its own /etc/gpushare, units, /var/lib/gpushare, /run and /opt/gpushare, and its
host name. All of them and whoever types share a network namespace, where nothing but they listens, and a process
namespace, so that ending the typist's shell ends every daemon and job of the fleet. Stand-ins: `ssh` and `scp`; systemd
(`fake_systemctl`); the programs in /opt/gpushare, which are those of this checkout, unless the fleet is bare; the
cards, which are simulated; the account ada. Needs root.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import leaks
from pages import Seat
from standins import fake_systemctl
from upcluster import UpCluster

HOSTS = ("head", *(f"gpu{number:02}" for number in range(1, 9)))
CARDS = "8xH100-80GB"
ADA, LAB = 4242, 4243
_SHARED = ("etc/gpushare", "etc/systemd/system", "var/lib/gpushare", "run", "opt/gpushare")
_NAMESPACES = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]

_BEGIN = """#!/bin/sh
# Where the typist sits: a network and a process table for the fleet alone.
ip link set lo up
mount --bind {fleet}/etc /etc && mount --bind {fleet}/lib /var/lib && mount --bind {fleet}/opt /opt
mount --bind {fleet}/home /home
exec "$@"
"""

_SSH = """#!/bin/sh
# ssh USER@HOST COMMAND...
user="${{1%@*}}" host="${{1#*@}}"
shift
exec unshare --mount --uts {fleet}/bin/on-host "$user" "$host" "$*"
"""

_SCP = """#!/bin/sh
# scp -q FILE... root@HOST:
shift
for last; do :; done
host="${{last#*@}}"
while [ $# -gt 1 ]; do cp "$1" {fleet}/hosts/"${{host%:}}"/root/; shift; done
"""

_ON_HOST = """#!/bin/sh
root={fleet}/hosts/$2
for place in {shared}; do mount --bind "$root/$place" "/$place" || exit 255; done
hostname "$2"
unset GPUSHARE_CONFIG
export PATH="$root/standins:{programs}:/usr/sbin:/usr/bin:/sbin:/bin" GPUSHARE_AGENT_SIMULATE={cards}
export {more}
if [ "$1" = root ]; then
    cd "$root/root" && HOME=/root exec sh -c "$3"
fi
# The programs of this checkout may lie where only root may look.
cd /home/ada && HOME=/home/ada USER=ada exec setpriv --reuid {ada} --regid {ada} --groups {lab} \\
    --inh-caps=+dac_read_search --ambient-caps=+dac_read_search -- sh -c "$3"
"""


def why_no_fleet() -> str:
    """What is missing here to play one; "" where nothing is."""
    if os.geteuid() != 0:
        return "only root makes hosts of namespaces"
    missing = [tool for tool in ("unshare", "setpriv", "ip", "mount", "hostname") if shutil.which(tool) is None]
    if missing:
        return f"there is no {', '.join(missing)} here"
    tried = subprocess.run([*_NAMESPACES, "mount", "--bind", "/tmp", "/opt"], capture_output=True, text=True)
    return f"namespaces are not allowed here: {tried.stderr.strip()}" if tried.returncode else ""


@contextlib.contextmanager
def fleet(place: Path, more: Mapping[str, str] | None = None, *, is_bare: bool = False) -> Iterator[Seat]:
    """Where the admin of the fleet sits. `more`: of the hosts' environment, where $root is a host's own directory."""
    fills = {
        "fleet": place,
        "shared": " ".join(_SHARED),
        "programs": Path(sys.executable).parent,
        "cards": CARDS,
        "more": " ".join(f'{name}="{value}"' for name, value in (more or {"SHELL": "/bin/sh"}).items()),
        "ada": ADA,
        "lab": LAB,
    }
    for name, text in (("begin", _BEGIN), ("bin/ssh", _SSH), ("bin/scp", _SCP), ("bin/on-host", _ON_HOST)):
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(**fills))
        path.chmod(0o755)
    _make_machine(place)
    for host in HOSTS:
        _make_host(place / "hosts" / host, is_bare=is_bare)
    (place / "admin").mkdir()
    seat = Seat(
        {
            **UpCluster(place / "admin", CARDS).environment(),
            "PATH": f"{place}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        [*_NAMESPACES, str(place / "begin")],
    )
    try:
        yield seat
    finally:
        UpCluster.until(lambda: not leaks.processes_of(place), "the fleet has ended", 20.0)
        _remove_groups(place)


def _make_machine(place: Path) -> None:
    """/etc with the hosts and the account, and empty places to mount on."""
    shutil.copytree("/etc", place / "etc", symlinks=True, ignore_dangling_symlinks=True)
    (place / "etc/hosts").write_text("127.0.0.1 localhost " + " ".join(HOSTS) + "\n")
    for file, line in (
        ("passwd", f"ada:x:{ADA}:{ADA}::/home/ada:/bin/sh"),
        ("group", f"ada:x:{ADA}:\nvision-lab:x:{LAB}:ada"),
    ):
        with (place / "etc" / file).open("a") as accounts:
            accounts.write(line + "\n")
    for folder in ("etc/gpushare", "etc/systemd/system", "lib/gpushare", "opt/gpushare", "home/ada"):
        (place / folder).mkdir(parents=True, exist_ok=True)
    os.chown(place / "home/ada", ADA, ADA)


def _make_host(root: Path, *, is_bare: bool) -> None:
    for folder in (*_SHARED, "root"):
        (root / folder).mkdir(parents=True)
    fake_systemctl.install(root)
    if not is_bare:
        (root / "opt/gpushare/current").symlink_to(Path(sys.executable).parent.parent)


def _remove_groups(place: Path) -> None:
    for host in HOSTS:
        root = place / "hosts" / host
        for unit in ("gpushare-agent", "gpushare-scheduler"):
            fake_systemctl.Unit(root, unit).remove_groups()
        identities = list((root / "var/lib/gpushare").glob("*/identity"))
        leaks.remove_groups_of({json.loads(path.read_text())["instance_id"] for path in identities})
