"""Death at every step of a launch, and at random moments: no job killed that need not be, none started twice,
every code true.

The judge is a file that the jobs themselves write. The agent is a process of its own (`executor_driver`),
killed with SIGKILL; launcher, shim and task die at named points. Each death is followed by a second agent
that has no failpoint and must finish the work.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from executor_kit import BOTH_KINDS, alive, needs_root, open_directory, until
from standins.nursery import Forked, Nursery

import gpushare
import gpushare_agent
from gpushare_agent import failpoints

DRIVER = Path(__file__).with_name("executor_driver.py")
PATHS = [str(Path(module.__file__ or "").parent.parent) for module in (gpushare_agent, gpushare, msgspec)]
# the driver by another interpreter, without what that one would find by itself
BOOT = f"import runpy, sys; sys.path[:0] = {PATHS!r}; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
PATIENCE_S = 60


class Bench:
    """A directory with jobs, the agents that work on it, and what came of it."""

    def __init__(self, root: Path, jobs: list[tuple[str, str]], weak: bool) -> None:
        self.python = sys.executable
        self.root = root
        self.weak = weak
        self.witness = root / "witness"
        (root / "instance").write_text(f"test-{uuid.uuid4().hex[:12]}")
        lines = [{"job": job, "argv": ["sh", "-c", code.replace("WITNESS", str(self.witness))]} for job, code in jobs]
        (root / "jobs").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def agent(self, failpoint: str = "", **more: object) -> subprocess.Popen[bytes] | Forked:
        """A new agent process. The agent's own failpoints are read while it loads, so that it must start from nothing;
        as must one of another user."""
        environment = {**os.environ, failpoints.ENVIRONMENT_NAME: failpoint}
        arguments = [str(self.root), *(["--weak"] if self.weak else [])]
        with (self.root / "stderr").open("ab") as errors:
            if not more and not failpoint.startswith("agent."):
                return Nursery.start(str(DRIVER), arguments, environment, errors.fileno())
            command = [self.python, "-c", BOOT, str(DRIVER), *arguments]
            return subprocess.Popen(command, env=environment, stderr=errors, stdin=subprocess.DEVNULL, **more)

    def finish(self) -> None:
        """An agent without failpoints works everything off."""
        done = self.agent()
        assert done.wait(PATIENCE_S) == 0, (self.root / "stderr").read_text()

    def reports(self) -> list[dict]:
        """Every whole line of the journal."""
        found = []
        for line in (self.root / "reports").read_text().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def ends(self) -> dict[str, dict]:
        """The last status of each attempt."""
        return {line["attempt_id"]: line for line in self.reports()}

    def lines(self, word: str) -> Counter[str]:
        """How often each job wrote the word."""
        if not self.witness.exists():
            return Counter()
        found = (line.split() for line in self.witness.read_text().splitlines())
        return Counter(attempt.split(".")[1] for said, attempt, *_ in found if said == word)

    def started_pids(self) -> list[int]:
        return [int(line.split()[2]) for line in self.witness.read_text().splitlines() if line.startswith("start")]


LONG = "echo start $ATTEMPT $$ >> WITNESS; sleep 0.4; echo end $ATTEMPT $$ >> WITNESS; exit 7"

# point -> (what dies there, what may be said of the first attempt; "" is a point that is tested elsewhere)
EXPECTED = {
    "agent.before_intent": ("agent", "NOT_STARTED"),
    "agent.torn_intent": ("agent", "NOT_STARTED"),
    "agent.after_intent": ("agent", "NOT_STARTED"),
    "agent.after_groups": ("agent", "NOT_STARTED"),
    "agent.before_order": ("agent", "NOT_STARTED"),
    "agent.after_order": ("agent", "NOT_STARTED|EXIT_CODE"),
    "agent.owned": ("agent", "EXIT_CODE"),
    "launcher.before_fork": ("launcher", "NOT_STARTED"),
    "launcher.after_fork": ("launcher", "EXIT_CODE"),
    "shim.started": ("shim", "NOT_STARTED"),
    "shim.bound": ("shim", "NOT_STARTED"),
    "shim.torn_exec_record": ("shim", "INFRA"),
    "shim.exec_recorded": ("shim", "INFRA"),
    "shim.task_forked": ("shim", "INFRA"),
    "shim.task_exited": ("shim", "INFRA"),
    "shim.before_exit_record": ("shim", "INFRA"),
    "shim.exit_written": ("shim", "INFRA"),
    "shim.exit_recorded": ("shim", "EXIT_CODE"),
    "task.joined": ("task", "SIGNALLED"),
    "task.drop": ("task", ""),
    "task.before_exec": ("task", "SIGNALLED"),
}


def test_every_crash_point_has_an_expected_outcome() -> None:
    assert set(EXPECTED) == set(failpoints.NAMES)


def _cases() -> Iterator[object]:
    """Both kinds of containment where a dead shim's leavings must be found; one where it makes no difference."""
    for point, (who, reasons) in EXPECTED.items():
        for kind in BOTH_KINDS if who == "shim" else BOTH_KINDS[who == "launcher" :][:1]:
            if reasons:
                yield pytest.param(point, *kind.values, marks=kind.marks, id=f"{point}-{kind.id}")


@pytest.mark.parametrize(("point", "weak"), list(_cases()))
def test_death_at(point: str, weak: bool, tmp_path: Path) -> None:
    who, reasons = EXPECTED[point]
    bench = Bench(tmp_path, [("1", LONG)], weak)
    first = bench.agent(f"{point}:kill")
    if who == "agent":
        assert first.wait(PATIENCE_S) == -signal.SIGKILL, (tmp_path / "stderr").read_text()
    else:
        # the others die under a living agent, which sees it and says what became of the attempt
        until(lambda: _over(bench, "t.1.0.1"), f"{point}: end of the first attempt", PATIENCE_S)
        first.kill()
        first.wait(PATIENCE_S)
    bench.finish()
    ends = bench.ends()
    assert ends["t.1.0.1"]["reason"] in reasons.split("|"), ends["t.1.0.1"]
    assert not any(alive(pid) for pid in (bench.started_pids() if bench.witness.exists() else []))
    _one_end_each(bench)
    starts, whole = bench.lines("start")["1"], bench.lines("end")["1"]
    last = ends[max(ends)]
    if who == "task":
        assert (last["attempt_id"], last["signal"], starts) == ("t.1.0.1", 9, 0)
    elif who == "shim" and reasons == "INFRA":
        # what may have run is never taken for what has not: one more attempt, and no two at a time
        assert (last["exit_code"], whole <= starts <= 2) == (7, True)
    else:
        assert (last["exit_code"], starts, whole) == (7, 1, 1)


def _over(bench: Bench, attempt_id: str) -> bool:
    path = bench.root / "reports"
    return path.exists() and bench.ends().get(attempt_id, {}).get("state") in ("SUCCEEDED", "FAILED", "STOPPED")


def _one_end_each(bench: Bench) -> None:
    """An attempt that ended once never ends otherwise, whoever looks again."""
    ends: dict[str, set[str]] = {}
    for line in bench.reports():
        if line["state"] in ("SUCCEEDED", "FAILED", "STOPPED"):
            key = json.dumps([line["state"], line.get("reason"), line.get("exit_code"), line.get("signal")])
            ends.setdefault(line["attempt_id"], set()).add(key)
    assert all(len(found) == 1 for found in ends.values()), ends


def _random_kills(tmp_path: Path, kills: int, weak: bool, seed: int) -> None:
    """Kill the agent at random moments while jobs launch, run and exit, until it has been killed that often."""
    rng = random.Random(seed)
    jobs = []
    for number in range(12 * kills):
        seconds = rng.choice((0, 0, 0.05, 0.2, 0.6))
        code = rng.randrange(0, 100)
        text = f"echo start $ATTEMPT $$ >> WITNESS; sleep {seconds}; echo end $ATTEMPT $$ >> WITNESS; exit {code}"
        jobs.append((f"{number}", text))
    codes = {job: int(text.rsplit(" ", 1)[1]) for job, text in jobs}
    bench = Bench(tmp_path, jobs, weak)
    killed = 0
    while killed < kills:
        agent = bench.agent()
        time.sleep(rng.uniform(0.15, 0.7))
        if agent.poll() is not None:
            assert agent.returncode == 0, (tmp_path / "stderr").read_text()
            break
        agent.kill()
        agent.wait(PATIENCE_S)
        killed += 1
    bench.finish()
    assert killed == kills, f"only {killed} kills (seed {seed}): too few jobs"
    assert bench.lines("start") == Counter(codes.keys()), f"seed {seed}"
    assert bench.lines("end") == Counter(codes.keys()), f"seed {seed}"
    _one_end_each(bench)
    for job, code in codes.items():
        attempts = [line for name, line in sorted(bench.ends().items()) if name.split(".")[1] == job]
        assert attempts[-1]["exit_code"] == code, (seed, attempts)
        assert all(line["reason"] == "NOT_STARTED" for line in attempts[:-1]), (seed, attempts)


@pytest.mark.parametrize("weak", BOTH_KINDS)
def test_random_kills_of_the_agent(tmp_path: Path, weak: bool) -> None:
    _random_kills(tmp_path, 4, weak, seed=random.randrange(1 << 30))


@pytest.mark.prove
@pytest.mark.timeout(600)
@pytest.mark.parametrize("weak", BOTH_KINDS)
def test_fifty_random_kills_of_the_agent(tmp_path: Path, weak: bool) -> None:
    _random_kills(tmp_path, 50, weak, seed=random.randrange(1 << 30))


def test_killed_launchers_and_agents_leave_no_process(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [("1", LONG)], weak=True)
    agent = bench.agent()
    until(lambda: bench.witness.exists(), "the job's start")
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    assert len(children) == 1
    agent.kill()
    agent.wait()
    until(lambda: not alive(int(children[0])), "the launcher's end")
    bench.finish()
    assert bench.ends()["t.1.0.1"]["exit_code"] == 7


def _interpreter_for_everybody() -> str:
    """One that an ordinary user can run and that finds our packages; the tests' own may lie in root's home."""
    code = f"import sys; sys.path[:0] = {PATHS!r}; import msgspec._core, gpushare_agent.executor"
    for python in (sys.executable, shutil.which("python3", path="/usr/local/bin:/usr/bin")):
        if python is None:
            continue
        try:
            subprocess.run([python, "-c", code], user=65534, group=65534, check=True, capture_output=True, cwd="/")
        except (OSError, subprocess.CalledProcessError):
            continue
        return python
    pytest.skip("no interpreter here that an ordinary user can run with our packages")


@needs_root
def test_an_ordinary_user_runs_jobs_too() -> None:
    """Everything from the agent on belongs to nobody."""
    python = _interpreter_for_everybody()
    with open_directory() as root:
        os.chown(root, 65534, 65534)
        bench = Bench(root, [("1", LONG), ("2", "setsid sleep 600 & exit 3")], weak=True)
        bench.python = python
        (root / "stderr").touch()
        os.chown(root / "stderr", 65534, 65534)
        done = bench.agent(user=65534, group=65534, extra_groups=[])
        assert done.wait(PATIENCE_S) == 0, (root / "stderr").read_text()
        assert [bench.ends()[f"t.{job}.0.1"]["exit_code"] for job in (1, 2)] == [7, 3]
