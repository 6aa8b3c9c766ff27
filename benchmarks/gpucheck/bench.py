"""What a step works with: the chosen card, programs on it with and without MPS, NVML, and the time that is left.

Standard library alone. Invariants: nothing here changes a setting of a card; every program of a step ends with it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpucheck import mps
from benchmarks.gpucheck.clients import Child, ChildError, Children
from benchmarks.gpucheck.report import AbsentError, others_on_card

Card = dict[str, Any]

#: Variables that steer CUDA or MPS; a program gets those that its step sets, and no others.
STEERING_PREFIXES = ("CUDA_", "NVIDIA_")
POLL_S = 0.05
SETTLE_PAUSE_S = 0.1
SETTLE_WITHIN_S = 3.0


@dataclass
class Bench:
    """The card under test and all that runs on it."""

    card: Card
    deadline: float
    children: Children = field(default_factory=Children)
    mps_program: str | None = None
    mps_missing: str = "the host was not looked at for MPS"
    _nvml: Child | None = None
    _quiet: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="gpc", dir="/tmp")))
    _own: set[int] = field(default_factory=set)

    @property
    def uuid(self) -> str:
        return str(self.card["uuid"])

    @property
    def left_s(self) -> float:
        return self.deadline - time.monotonic()

    def environ(self) -> dict[str, str]:
        """A program's environment outside MPS: its pipe directory is empty, so that it finds no daemon at all."""
        return {
            **base_environ(),
            "CUDA_VISIBLE_DEVICES": self.uuid,
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_MPS_PIPE_DIRECTORY": str(self._quiet),
        }

    def mps_environ(self, daemon: mps.Daemon, **variables: str) -> dict[str, str]:
        """A program's environment as a client of `daemon`."""
        return {**self.environ(), "CUDA_MPS_PIPE_DIRECTORY": str(daemon.pipe), **variables}

    def start(self, environ: Mapping[str, str] | None = None, *, user: int | None = None) -> Child:
        """A CUDA program that has not opened the card yet. Raises AbsentError without a driver, ChildError."""
        child = self.children.start("workload", self.environ() if environ is None else environ, user=user)
        if child.greeting.get("code") != 0:
            raise AbsentError(f"CUDA is not here: {child.greeting.get('at')}")
        return child

    def opened(self, environ: Mapping[str, str] | None = None) -> tuple[Child, dict[str, Any]]:
        """A CUDA program with a context and its kernels, and what it said of the card. Raises AbsentError."""
        child = self.start(environ)
        said = child.ask("init", timeout_s=60)
        if said["code"] != 0:
            raise AbsentError(f"a CUDA program cannot open the card: code {said['code']} at {said.get('at')}")
        loaded = child.ask("kernels", timeout_s=60)
        if loaded["code"] != 0:
            raise AbsentError(f"the driver does not take our PTX: code {loaded['code']}")
        return child, said

    @contextlib.contextmanager
    def daemon(self, *flags: str) -> Iterator[mps.Daemon]:
        """A running MPS daemon of our own for the card. Raises AbsentError where there is none to run."""
        if self.mps_program is None:
            raise AbsentError(self.mps_missing)
        daemon = mps.Daemon(self.mps_program, self.uuid, base_environ(), *flags)
        try:
            daemon.start()
            self._own.add(daemon.pid)
            yield daemon
        finally:
            self.children_of_step_end()
            daemon.stop()

    def server(self, daemon: mps.Daemon, uid: int | None = None) -> tuple[int, float]:
        """Start the daemon's server for a user (ourselves); its pid is then known as ours."""
        server, seconds = daemon.start_server(os.geteuid() if uid is None else uid)
        self._own.add(server)
        return server, seconds

    def nvml(self) -> Child:
        """The NVML reader, started again after a hang. Raises AbsentError."""
        if self._nvml is None or not self._nvml.alive():
            if self._nvml is not None:
                self._nvml.close()
            self._nvml = open_nvml()
        return self._nvml

    def drop_nvml(self) -> None:
        """End the NVML reader; the next question starts another."""
        if self._nvml is not None:
            self._nvml.kill()

    def look(self) -> Card:
        """The card as NVML shows it now."""
        try:
            cards = self.nvml().ask("snapshot", timeout_s=20)["cards"]
        except ChildError as failure:
            self.drop_nvml()
            raise AbsentError(f"NVML does not answer: {failure}") from failure
        for card in cards:
            if card["uuid"] == self.uuid:
                return dict(card)
        raise AbsentError(f"NVML no longer shows {self.uuid}")

    def used_mib(self) -> int:
        """The card's memory in use, once it stands still: what a program held comes back a moment after its end."""
        deadline = time.monotonic() + SETTLE_WITHIN_S
        last = int(self.look()["used_mib"])
        while time.monotonic() < deadline:
            time.sleep(SETTLE_PAUSE_S)
            now = int(self.look()["used_mib"])
            if now == last:
                break
            last = now
        return last

    def disturbed(self) -> str | None:
        """Who else is on the card at this moment; None where it is ours alone."""
        return others_on_card(self.look(), self.children.pids | self._own)

    def seconds_until(self, condition: Callable[[], bool], within_s: float) -> float | None:
        """How long it took until the condition held; None where it did not in time."""
        began = time.monotonic()
        while time.monotonic() - began < within_s:
            if condition():
                return time.monotonic() - began
            time.sleep(POLL_S)
        return None

    def children_of_step_end(self) -> None:
        """End the programs of a step."""
        self.children.close()

    def close(self) -> None:
        """End everything that was started."""
        self.children.close()
        if self._nvml is not None:
            self._nvml.close()
        shutil.rmtree(self._quiet, ignore_errors=True)


def base_environ() -> dict[str, str]:
    """Our own environment without what could steer CUDA or MPS."""
    return {key: value for key, value in os.environ.items() if not key.startswith(STEERING_PREFIXES)}


def open_nvml() -> Child:
    """A process that reads NVML. Raises AbsentError where there is no driver or no card to read."""
    child = Child("nvmlread", base_environ())
    try:
        child.greet()
    except ChildError as failure:
        child.close()
        raise AbsentError(f"NVML cannot be read: {failure}") from failure
    if "absent" in child.greeting:
        child.close()
        raise AbsentError(str(child.greeting["absent"]))
    return child


def choose(cards: list[Card], wanted: str | None) -> Card:
    """The card to check: the one asked for, else the one with the fewest processes and the most room.

    Raises AbsentError where no card can be used as it is set.
    """
    if wanted is not None:
        cards = [card for card in cards if card["uuid"] == wanted]
    if not cards:
        raise AbsentError(f"no card {wanted}" if wanted else "the driver shows no card")
    usable = [card for card in cards if not card["mig"] and card["compute_mode"] in (None, 0)]
    if not usable:
        raise AbsentError("every card is in MIG mode or not in compute mode DEFAULT, and the check changes no setting")
    return min(usable, key=lambda card: (len(card["compute"] or ()), -(card["free_mib"] or 0)))
