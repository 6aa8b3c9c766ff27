"""What attempts hold, on disk: one small file each, so that a restarted agent has its ledger back.

Imports os, msgspec and the pure core. A file appears before its attempt is launched and goes when the scheduler lets
go of the attempt. It must outlive the agent, not the host: after a reboot nothing is held, so nothing is flushed
to the disk here. A damaged file counts as absent: it can only belong to an attempt that was not launched yet.
Files that are not needed any more are kept under other names and written again: a file system that just deleted files
may be slow to make new ones.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import msgspec

from gpushare_agent.core import Holding

DIRECTORY = "held"
_SUFFIX = ".json"
# No attempt's id begins with a dot.
_SPARE_PREFIX = ".spare-"
SPARES_KEPT = 64


class HoldingBook:
    """The files of one state directory."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / DIRECTORY
        self._path.mkdir(mode=0o700, exist_ok=True)
        before, ours = os.listdir(self._path), len(_SPARE_PREFIX)
        self._spares = [name for name in before if name.startswith(_SPARE_PREFIX) and name[ours:].isdecimal()]
        self._spares_made = 1 + max((int(name[ours:]) for name in self._spares), default=-1)

    def load(self) -> dict[str, Holding]:
        """Every readable holding by attempt id."""
        found: dict[str, Holding] = {}
        for name in os.listdir(self._path):
            if not name.endswith(_SUFFIX):
                continue
            try:
                holding = msgspec.json.decode((self._path / name).read_bytes(), type=Holding)
            except (OSError, ValueError):
                continue
            if name == holding.attempt_id + _SUFFIX:
                found[holding.attempt_id] = holding
        return found

    def write(self, holding: Holding) -> None:
        """Raises OSError (a full disk): the attempt must not start then."""
        name = self._name(holding.attempt_id)
        if not self._spares:
            _write(name, msgspec.json.encode(holding))
            return
        spare = f"{self._path}/{self._spares[-1]}"
        _write(spare, msgspec.json.encode(holding))
        os.rename(spare, name)
        self._spares.pop()

    def drop(self, attempt_id: str) -> None:
        """Nothing is held any more; an absent file is fine."""
        name = self._name(attempt_id)
        with contextlib.suppress(FileNotFoundError):
            if len(self._spares) >= SPARES_KEPT:
                os.unlink(name)
                return
            spare = f"{_SPARE_PREFIX}{self._spares_made}"
            try:
                os.rename(name, f"{self._path}/{spare}")
            except FileNotFoundError:
                return
            except OSError:
                # A new name may need room that a full disk has not; to let go needs none.
                os.unlink(name)
                return
            self._spares_made += 1
            self._spares.append(spare)

    def _name(self, attempt_id: str) -> str:
        return f"{self._path}/{attempt_id}{_SUFFIX}"


def _write(path: str, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if os.write(descriptor, data) != len(data):
            raise OSError(errno.ENOSPC, "the disk is full", path)
    finally:
        os.close(descriptor)
