"""One run of one or more benchmarks: its directory, its two cores, its page, and the file of `--out`.

Writes to stdout alone unless `--out` names a file. What a run needs on the disk lies in a temporary directory under
`--dir` and is gone afterwards.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

import gpushare
from benchmarks.cluster import CAPS, ClusterError
from benchmarks.figures import Figure, render
from gpushare.errors import GpushareError

CORES = 2
Measure = Callable[["Session"], list[Figure]]


@dataclass(frozen=True)
class Session:
    """`base` is empty at the start and removed at the end."""

    base: Path

    def room(self, name: str) -> Path:
        """A directory for one benchmark; not made yet."""
        return self.base / name


def command(about: str | None, measures: Sequence[Measure]) -> None:
    """The command line of a benchmark module."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the page to this file too")
    parser.add_argument(
        "--dir", type=Path, metavar="DIR", help="where the cluster lives for the time being: decides the disk"
    )
    arguments = parser.parse_args()
    cores = pin()
    lines: list[str] = []

    def say(text: str) -> None:
        print(text, flush=True)
        lines.append(text)

    with tempfile.TemporaryDirectory(prefix="gpushare-bench-", dir=arguments.dir) as base:
        for line in heading(cores, Path(base)):
            say(line)
        failed = False
        for measure in measures:
            say("")
            try:
                for figure in measure(Session(Path(base))):
                    say(render(figure))
            except (ClusterError, GpushareError, OSError, RuntimeError, TimeoutError) as err:
                # The others are still worth measuring.
                failed = True
                say(f"error: {measure.__module__}: {str(err) or type(err).__name__}")
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text("\n".join(lines) + "\n")
    sys.exit(1 if failed else 0)


def pin() -> list[int]:
    """Two cores for everything that this run starts, the client included."""
    cores = sorted(os.sched_getaffinity(0))[:CORES]
    os.sched_setaffinity(0, cores)
    return cores


def heading(cores: Sequence[int], base: Path) -> list[str]:
    """Date, machine and command: without these a figure says nothing."""
    filesystem = filesystem_of(base)
    lines = [
        f"date     {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        f"machine  {cpu_model()}; {len(cores)} cores used, client included; "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB; load before {os.getloadavg()[0]:.2f}",
        f"system   {platform.system()} {platform.release()}, {filesystem}, Python {platform.python_version()}, "
        f"gpushare {gpushare.__version__}",
        f"command  python -m {' '.join([module_name(), *sys.argv[1:]])}",
        CAPS,
    ]
    if filesystem in ("tmpfs", "ramfs"):
        lines.append(f"WARNING  {base.parent} is in memory: fsync costs nothing there. Name a disk with --dir.")
    if os.getloadavg()[0] > 0.5:
        lines.append("WARNING  other programs use this machine now; the figures are lower bounds")
    return lines


def module_name() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec is not None else "benchmarks"


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def filesystem_of(path: Path) -> str:
    """The type of the filesystem that holds `path`."""
    real = str(path.resolve())
    kind, longest = "unknown", ""
    for part in psutil.disk_partitions(all=True):
        inside = real == part.mountpoint or real.startswith(part.mountpoint.rstrip("/") + "/")
        if inside and len(part.mountpoint) > len(longest):
            kind, longest = part.fstype, part.mountpoint
    return kind
