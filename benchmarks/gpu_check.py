"""First calls on a real card: what gpushare's design takes for granted, measured, in one dated file.

Run: python -m benchmarks.gpu_check [--gpu UUID] [--out DIR] [--minutes 8] [--skip-tests]. It changes no setting of the
card, stays within its minutes, and needs Python with nvidia-ml-py alone: CUDA is called through ctypes. Steps that
could harm others run only while NVML shows nobody else. Without a card it says so and ends with 0; it ends with 1 where
a step or a test failed (an expectation that does not hold is a result and no failure).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.gpucheck import steps_faults, steps_mps, steps_plain
from benchmarks.gpucheck.bench import Bench, choose, open_nvml
from benchmarks.gpucheck.clients import ChildError
from benchmarks.gpucheck.mps import MpsError
from benchmarks.gpucheck.report import AbsentError, Findings, Heading, Outcome, file_name, markdown, summary, why_not

ROOT = Path(__file__).resolve().parent.parent
TESTS_TIMEOUT_S = 100.0
#: Kept of the minutes for ending programs and writing the file.
CLOSING_S = 25.0


@dataclass(frozen=True)
class Step:
    """One step: `needs_s` is what it may take, `mps` whether it needs MPS, `alone` whether it could harm others."""

    key: str
    title: str
    run: Callable[[Bench, Findings], None]
    needs_s: float
    mps: bool = False
    alone: bool = False


STEPS = (
    Step("a", "the host", steps_plain.host, 30),
    Step("1", "a program outside MPS", steps_plain.program, 25),
    Step("2", "two programs outside MPS", steps_plain.timeslice, 20),
    Step("3", "how much of a card is usable", steps_plain.usable, 30, alone=True),
    Step("4", "fault and SIGKILL outside MPS", steps_plain.faults, 25, alone=True),
    Step("b", "daemon, server, other users", steps_mps.daemon_and_server, 60, mps=True),
    Step("g", "the control channel", steps_mps.control_channel, 25, mps=True),
    Step("c", "the memory limit", steps_mps.memory_limit, 50, mps=True),
    Step("d", "thread percentages", steps_mps.shares, 40, mps=True),
    Step("e, i", "what NVML shows of MPS, and of who left it", steps_mps.seen_by_nvml, 30, mps=True),
    Step("h", "suspend outside MPS", steps_plain.suspend, 40),
    Step("h, MPS", "suspend of an MPS client", steps_mps.suspend_client, 30, mps=True, alone=True),
    Step("f1", "terminate_client of a busy client", steps_faults.terminate, 30, mps=True, alone=True),
    Step("f2", "SIGKILL of a busy client", steps_faults.kill, 30, mps=True, alone=True),
    Step("f3", "a fault under MPS", steps_faults.fault, 45, mps=True, alone=True),
    Step("j", "the first client too many", steps_mps.many_clients, 60, mps=True),
)


class TooLongError(Exception):
    """A step did not end in its time."""


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise TooLongError inside the block once it has run for so long."""

    def ring(_number: int, _frame: object) -> None:
        raise TooLongError(f"it did not end within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_step(bench: Bench, step: Step) -> Outcome:
    """Run one step, if it may; every end of it is an outcome."""
    found = Findings()
    began = time.monotonic()
    state, why = "measured", ""
    try:
        reason = why_not(step.needs_s, bench.left_s, bench.mps_missing if step.mps else "")
        if reason:
            raise AbsentError(reason)
        with at_most(min(bench.left_s, 2 * step.needs_s)):
            if step.alone and (others := bench.disturbed()):
                raise AbsentError(others)
            step.run(bench, found)
    except AbsentError as absent:
        state, why = "absent", str(absent)
    except TooLongError as failure:
        state, why = "failed", str(failure)
        bench.drop_nvml()  # it may owe the answer to a question that nobody waits for any more
    except (ChildError, MpsError, OSError, LookupError, ValueError, TypeError) as failure:
        state, why = "failed", f"{type(failure).__name__}: {failure}"
    finally:
        bench.children_of_step_end()
    return Outcome(step.key, step.title, state, why, time.monotonic() - began, found)


def run_tests() -> Outcome:
    """tests/gpu under pytest."""
    found = Findings()
    began = time.monotonic()
    state, why = "measured", ""
    needed = ("pytest", "msgspec", "pytest_timeout")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        return Outcome("tests", "tests/gpu", "absent", f"not installed: {', '.join(missing)}", 0.0, found)
    path = os.pathsep.join(filter(None, (str(ROOT), str(ROOT / "agent"), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests/gpu"]
    try:
        ran = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=TESTS_TIMEOUT_S,
            check=False,
        )
        lines = ran.stdout.strip().splitlines()
        found.figure("pytest", lines[-1] if lines else ran.stderr.strip()[-300:])
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        if ran.returncode != 0:
            state, why = "failed", "; ".join(failed) or f"pytest ended with code {ran.returncode}"
    except subprocess.TimeoutExpired:
        state, why = "failed", f"tests/gpu took longer than {TESTS_TIMEOUT_S:.0f} s"
    return Outcome("tests", "tests/gpu", state, why, time.monotonic() - began, found)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu_check", description="First calls on a real card; changes no setting of it."
    )
    parser.add_argument("--gpu", metavar="UUID", help="the card to check (default: the emptiest)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="where the result file goes")
    parser.add_argument("--minutes", type=float, default=8.0, help="the check ends within this time")
    parser.add_argument("--skip-tests", action="store_true", help="leave tests/gpu out")
    return parser.parse_args(arguments)


def say(outcome: Outcome) -> None:
    print(f"{outcome.key:>7})  {outcome.title}: {summary(outcome)} ({outcome.seconds:.1f} s)", flush=True)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    began = time.monotonic()
    try:
        reader = open_nvml()
    except AbsentError as absent:
        print(f"no NVIDIA card to check on this machine: {absent}")
        return 0
    try:
        state = reader.ask("snapshot", timeout_s=60)
        card = choose(state["cards"], options.gpu)
    except (AbsentError, ChildError) as absent:
        print(f"no NVIDIA card to check on this machine: {absent}")
        return 1 if isinstance(absent, ChildError) else 0
    finally:
        reader.close()
    print(f"checking {card['name']} {card['uuid']}, driver {state['driver']}", flush=True)
    outcomes = [] if options.skip_tests else [run_tests()]
    for outcome in outcomes:
        say(outcome)
    bench = Bench(card=card, deadline=began + options.minutes * 60 - CLOSING_S)
    try:
        for step in STEPS:
            outcomes.append(run_step(bench, step))
            say(outcomes[-1])
    finally:
        bench.close()
    return write(arguments, options.out, card, state, outcomes)


def write(
    arguments: list[str], out: Path, card: dict[str, object], state: dict[str, object], outcomes: list[Outcome]
) -> int:
    """Write the result file; the exit code of the check."""
    now = datetime.now(UTC)
    kernel = os.uname()
    host = f"{kernel.sysname} {kernel.release} {kernel.machine}"
    heading = Heading(
        date=now.strftime("%Y-%m-%d %H:%M UTC"),
        command=" ".join(["python -m benchmarks.gpu_check", *arguments]),
        card=str(card["name"]),
        uuid=str(card["uuid"]),
        driver=str(state["driver"]),
        cuda=str(state["cuda"]),
        host=f"{host}, Python {sys.version.split()[0]}, {os.cpu_count()} CPUs",
    )
    out.mkdir(parents=True, exist_ok=True)
    path = out / file_name(now.strftime("%Y%m%d-%H%M"), heading.card)
    path.write_text(markdown(heading, outcomes), encoding="utf-8")
    print(f"written: {path}")
    return 1 if any(outcome.state == "failed" for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
