"""`gpushare-simwork`: a job for simulated cards. It declares what it "uses" and then does nothing.

Imports the standard library and the quantity parser alone, and few of those: it is started thousands of times. What
it uses stands in one small file per process in the directory that the agent named in GPUSHARE_SIM_DIR; the agent
counts it while the process lives. Like a program on a fenced card it fails with an out-of-memory error when its
slice is smaller, and with --ignore-limit it overruns the slice until somebody stops it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from gpushare.names import TextError
from gpushare.quantity import parse_memory_mib

SIM_DIR_ENV = "GPUSHARE_SIM_DIR"
OUT_OF_MEMORY_EXIT = 1


def start_ticks(pid: int) -> int | None:
    """When that process started, in clock ticks since the boot; None when there is none. Tells a reused pid."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="latin-1")
    except OSError:
        return None
    # The command's name may hold anything, blanks and brackets included; fields count from its last bracket.
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] == "Z" else int(fields[19])


def declare(directory: Path, uuids: list[str], memory_mib: int, sm_percent: int) -> Path:
    """Writes the usage file of this process, whole or not at all, and returns its path. MiB and percent per card."""
    pid = os.getpid()
    cards = ",".join(f'"{uuid}"' for uuid in uuids)
    path = directory / f"{pid}.json"
    partial = directory / f".{pid}.part"
    partial.write_text(
        f'{{"pid":{pid},"start_ticks":{start_ticks(pid) or 0},"cards":[{cards}],'
        f'"memory_mib":{memory_mib},"sm_percent":{sm_percent}}}',
        encoding="ascii",
    )
    partial.replace(path)
    return path


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpushare-simwork", description="Uses a simulated GPU: memory and SM time on every visible card."
    )
    parser.add_argument("--memory", default="1G", help="device memory on each card (default 1G)")
    parser.add_argument("--util", type=float, default=0.5, help="share of the card's SMs, 0 to 1 (default 0.5)")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long (default 5)")
    parser.add_argument("--ignore-limit", action="store_true", help="take the memory even beyond the slice")
    parser.add_argument("--exit-code", type=int, default=0, help="end with this code (default 0)")
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.util <= 1:
        parser.error("--util is not between 0 and 1")
    if not 0 <= arguments.seconds < float("inf"):
        parser.error("--seconds is negative or no time")
    try:
        arguments.memory_mib = parse_memory_mib(arguments.memory, "--memory")
    except TextError as err:
        parser.error(str(err))
    return arguments


def _work(seconds: float) -> None:
    """Prints a line each second, as training loops do."""
    began = time.monotonic()
    step = 0
    while True:
        left_s = seconds - (time.monotonic() - began)
        if left_s <= 0:
            return
        time.sleep(min(1.0, left_s))
        step += 1
        print(f"step {step}: {min(seconds, time.monotonic() - began):.1f} of {seconds:g} s", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: `--exit-code`, or 1 when the cards or their memory are not there."""
    arguments = _arguments(argv)
    uuids = [u for u in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if u]
    directory = os.environ.get(SIM_DIR_ENV)
    if not uuids or not directory:
        print("gpushare-simwork: no simulated CUDA device is visible", file=sys.stderr)
        return OUT_OF_MEMORY_EXIT
    limit_mib = int(os.environ.get("GPUSHARE_GPU_MEMORY_MIB", "0"))
    if arguments.memory_mib > limit_mib and not arguments.ignore_limit:
        print(
            f"gpushare-simwork: CUDA out of memory: tried to allocate {arguments.memory_mib} MiB, "
            f"the slice has {limit_mib} MiB",
            file=sys.stderr,
        )
        return OUT_OF_MEMORY_EXIT
    path = declare(Path(directory), uuids, arguments.memory_mib, round(arguments.util * 100))
    print(f"using {arguments.memory_mib} MiB and {arguments.util:.0%} of {','.join(uuids)}", flush=True)
    try:
        _work(arguments.seconds)
    finally:
        path.unlink(missing_ok=True)
    print("done", flush=True)
    code: int = arguments.exit_code
    return code


if __name__ == "__main__":
    sys.exit(main())
