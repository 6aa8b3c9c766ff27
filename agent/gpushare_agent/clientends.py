"""How processes behind an MPS server end: which were let go of before their kill, and which died under the server.

Pure: imports the launch vocabulary and the names of signals. A client that dies with work in flight may take the
server of its neighbours with it, whoever killed it: a time limit, the end of a lease, the kernel for want of memory, or
a fault of its own. Invariant: an attempt's clients are ended through the server once, and a death without that, of an
attempt that was seen on its card, is told once.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable

from gpushare_agent.launchspec import AttemptStatus

# A program that is asked to end may end itself in order; by any other signal it did not.
_ORDERLY = (None, signal.SIGTERM)


class ClientEnds:
    """Of the attempts that were fenced by MPS alone."""

    def __init__(self) -> None:
        self._present: frozenset[str] = frozenset()
        self._begun: set[str] = set()
        self._let_go: set[str] = set()

    def seen(self, attempts: Iterable[str]) -> None:
        """These attempts have a process on a card of theirs now."""
        self._present = frozenset(attempts)

    def begin(self, attempt_id: str) -> bool:
        """True for the first who wants its clients ended."""
        if attempt_id in self._begun:
            return False
        self._begun.add(attempt_id)
        return True

    def let_go(self, attempt_id: str) -> None:
        """The server has closed its contexts: a kill harms nobody any more."""
        self._let_go.add(attempt_id)

    def over(self, status: AttemptStatus) -> str:
        """The attempt has ended and is forgotten here; a sentence if it died under the server, else ""."""
        attempt_id = status.attempt_id
        let_go = attempt_id in self._let_go
        self._begun.discard(attempt_id)
        self._let_go.discard(attempt_id)
        killed = status.stop_signal == signal.SIGKILL or status.signal not in _ORDERLY
        if let_go or not killed or attempt_id not in self._present:
            return ""
        return f"a process of attempt {attempt_id} died as a client of the MPS server, perhaps with work in flight"
