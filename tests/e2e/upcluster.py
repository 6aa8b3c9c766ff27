"""A cluster of `gpushare up` and the real command line, for tests that see the product as its user does.

Everything a test starts lives below a directory of its own, listens on a free loopback port, and is looked for when
the test is over: a process that stayed fails it. Commands that only ask and tell the scheduler run in this process,
with the environment, the directory and the streams of their own that a process would have: starting Python and loading
gRPC took more time than all else that they do.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from leaks import describe, end_processes_of, processes_of

from gpushare.cli import main as cli

READY_LIMIT_S = 60.0
STOP_LIMIT_S = 60.0
COMMAND_LIMIT_S = 60.0
CLI = [sys.executable, "-m", "gpushare.cli.main"]
# What needs no process: neither a terminal, nor descriptors, nor signals, nor anything that outlives it.
_PLAIN_COMMANDS = frozenset(
    (
        *("audit", "cancel", "explain", "extend", "gpus", "job", "jobs", "login", "node", "nodes", "requeue"),
        *("resubmit", "submit", "tenant", "token", "usage", "wait"),
    )
)


class Outcome(NamedTuple):
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class UpCluster:
    """`gpushare up` in `home`. `prefix` is put before its command line, e.g. to run it as somebody else."""

    def __init__(self, home: Path, shape: str, prefix: Sequence[str] = ()) -> None:
        self.home = home
        self.shape = shape
        self.prefix = list(prefix)
        self.state_dir = home / "state"
        self.process: subprocess.Popen[bytes] | None = None
        (home / "work").mkdir(parents=True, exist_ok=True)

    def environment(self, person: str = "admin") -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("GPUSHARE_", "XDG_"))}
        return kept | {
            "HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "GPUSHARE_CONFIG": str(self.home / f"{person}.toml"),
        }

    def start(self, *more: str) -> None:
        """Starts it and waits until it is ready."""
        self.begin(*more)
        self.until(lambda: "\nready; " in self.said() or self._ended(), "`gpushare up` is ready", READY_LIMIT_S)
        assert not self._ended(), self.said()

    def begin(self, *more: str) -> None:
        """Starts it without waiting."""
        command = ["up", "--simulate", self.shape, "--state-dir", str(self.state_dir), "--listen", "127.0.0.1:0"]
        with (self.home / "up.log").open("wb") as log:
            self.process = subprocess.Popen(
                [*self.prefix, *CLI, *command, *more],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Sends a signal and returns the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(STOP_LIMIT_S)
        self.process = None
        return code

    def said(self) -> str:
        """What `up` printed since its last start."""
        return (self.home / "up.log").read_text(errors="replace")

    def _ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def cli(self, *words: str, person: str = "admin", limit_s: float = COMMAND_LIMIT_S, **more: Any) -> Outcome:
        """Runs `gpushare WORDS` to its end."""
        if words[0] in _PLAIN_COMMANDS:
            environ = self.environment(person) | more.pop("env", {})
            return _run_here(words, environ, more.pop("cwd", self.home / "work"), **more)
        done = subprocess.run(
            [*CLI, *words],
            env=self.environment(person) | more.pop("env", {}),
            cwd=more.pop("cwd", self.home / "work"),
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=limit_s,
            **({"stdin": subprocess.DEVNULL} if "input" not in more else {}),
            **more,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def ok(self, *words: str, person: str = "admin", **more: Any) -> Outcome:
        """A command that must succeed."""
        done = self.cli(*words, person=person, **more)
        assert done.code == 0, f"gpushare {' '.join(words)}: {done}"
        return done

    def spawn(self, *words: str, person: str = "admin", **more: Any) -> subprocess.Popen[str]:
        """Starts `gpushare WORDS`; stdout and stderr are pipes of text unless said otherwise."""
        settings: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "cwd": self.home / "work",
        }
        return subprocess.Popen([*CLI, *words], env=self.environment(person), **(settings | more))

    def job(self, name: str, person: str = "admin") -> Any:
        return self.ok("job", name, "-o", "json", person=person).json

    def wait_for(self, name: str, *states: str, limit_s: float = COMMAND_LIMIT_S) -> Any:
        """The job as soon as it is in one of `states`."""
        found: list[Any] = []

        def holds() -> bool:
            found[:] = [self.job(name)]
            return found[0]["state"].removeprefix("JOB_STATE_") in states

        self.until(holds, f"job {name} is {states}", limit_s, lambda: str(found))
        return found[0]

    @staticmethod
    def until(
        holds: Callable[[], bool], what: str, limit_s: float = 30.0, found: Callable[[], str] = lambda: ""
    ) -> None:
        """Returns when `holds()`; fails when it does not in time."""
        deadline_s = time.monotonic() + limit_s
        while not holds():
            assert time.monotonic() < deadline_s, f"not within {limit_s:.0f} s: {what} {found()}"
            time.sleep(0.05)

    def close(self) -> None:
        """Ends everything, and fails where something would have stayed."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(STOP_LIMIT_S)
        try:
            self.until(lambda: not processes_of(self.home), "all processes are gone", 15.0)
        except AssertionError:
            left = describe(processes_of(self.home))
            end_processes_of(self.home)
            raise AssertionError(f"left behind: {left}") from None


def _run_here(words: Sequence[str], environ: Mapping[str, str], directory: Path, input: str = "") -> Outcome:
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape", write_through=True) for _ in range(2))
    kept = dict(os.environ)
    with contextlib.ExitStack() as stack:
        # A file, because a command may ask what kind of file its input is.
        given = stack.enter_context(open(os.devnull)) if not input else io.StringIO(input)
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        stack.enter_context(contextlib.chdir(directory))
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(sys, "stdin", given)
        stack.callback(lambda: (os.environ.clear(), os.environ.update(kept)))
        os.environ.clear()
        os.environ.update(environ)
        with pytest.raises(SystemExit) as ended:
            cli.main(list(words))
    assert isinstance(ended.value.code, int)
    return Outcome(ended.value.code, *(stream.buffer.getvalue().decode(errors="replace") for stream in (out, err)))


@pytest.fixture(scope="session")
def up_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpCluster]:
    """One cluster of two nodes with two cards each for all tests of a worker that take it; they leave it idle."""
    cluster = UpCluster(tmp_path_factory.mktemp("up"), "2x2xH100-80GB")
    try:
        cluster.start("--stop-jobs")
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def make_up(tmp_path: Path) -> Iterator[Callable[..., UpCluster]]:
    """Makes clusters that a test starts and stops by itself."""
    made: list[UpCluster] = []

    def make(shape: str = "1x1xL40S", prefix: Sequence[str] = (), home: Path = tmp_path / "up") -> UpCluster:
        made.append(UpCluster(home, shape, prefix))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()
