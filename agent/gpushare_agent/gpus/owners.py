"""Names of Unix users for display, without ever waiting long for the name service.

Imports the standard library alone. A directory server that hangs holds one daemon thread and nothing else:
until it answers, a user is shown as "uid N". At most one look-up runs at a time and the cache is bounded.
"""

from __future__ import annotations

import asyncio
import pwd
import threading
from collections.abc import Callable, Iterable

MAX_NAMES = 4096


def name_of(uid: int) -> str:
    """The user's name through the host's name service, or "uid N"."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return f"uid {uid}"


class UserNames:
    """A cache of uid -> name that is filled by one thread."""

    def __init__(self, look_up: Callable[[int], str] = name_of, patience_s: float = 0.2) -> None:
        self._look_up = look_up
        self._patience_s = patience_s
        self._known: dict[int, str] = {}
        self._busy = False

    async def of(self, uids: Iterable[int]) -> dict[int, str]:
        """Names for these uids, at once where known, else after at most the patience."""
        wanted = set(uids)
        missing = wanted - self._known.keys()
        if missing and not self._busy:
            if len(self._known) + len(missing) > MAX_NAMES:
                self._known.clear()
                missing = wanted
            await self._resolve(missing)
        return {uid: self._known.get(uid, f"uid {uid}") for uid in wanted}

    async def _resolve(self, uids: set[int]) -> None:
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        self._busy = True

        def work() -> None:
            try:
                for uid in sorted(uids):
                    self._known[uid] = self._look_up(uid)
            finally:
                self._busy = False
            try:
                loop.call_soon_threadsafe(done.set)
            except RuntimeError:
                return  # the loop has ended; nobody waits

        threading.Thread(target=work, name="user-names", daemon=True).start()
        try:
            await asyncio.wait_for(done.wait(), self._patience_s)
        except TimeoutError:
            return
