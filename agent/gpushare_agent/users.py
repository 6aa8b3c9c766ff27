"""Unix users through the host's name service, without ever letting it hold up the agent: those of jobs by name, people
who log in by number.

Imports asyncio, threading and `unixuser`. A directory server that hangs holds a bounded number of daemon threads and
the launches that need it, nothing else; what was found is remembered for a minute, so that a burst of one user's jobs
asks once.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from gpushare.reasons import Reason
from gpushare_agent.launchspec import LaunchRefused

REMEMBER_S = 60.0
PATIENCE_S = 10.0
LOOKUPS_MAX = 4
USERS_MAX = 4096


_User = TypeVar("_User")


class UserLookup(Generic[_User]):
    """Names -> users as `resolve` finds them, each asked by a thread of its own."""

    def __init__(
        self, resolve: Callable[[str], _User], patience_s: float = PATIENCE_S, lookups_max: int = LOOKUPS_MAX
    ) -> None:
        self._resolve = resolve
        self._lookups_max = lookups_max
        self._patience_s = patience_s
        self._known: dict[str, tuple[float, _User]] = {}
        self._under_way: dict[str, asyncio.Future[_User]] = {}

    async def find(self, name: str) -> _User:
        """The user, or LaunchRefused(UNIX_USER_UNMAPPED); a silent name service is LaunchRefused(NOT_STARTED)."""
        if not name:
            detail = "the job names no Unix user; give the user's token one"
            raise LaunchRefused(Reason.UNIX_USER_UNMAPPED, detail)
        found = self._known.get(name)
        if found is not None and time.monotonic() - found[0] < REMEMBER_S:
            return found[1]
        future = self._under_way.get(name)
        if future is None:
            if len(self._under_way) >= self._lookups_max:
                raise LaunchRefused(Reason.NOT_STARTED, "this node's name service does not answer")
            future = self._begin(name)
        try:
            return await asyncio.wait_for(asyncio.shield(future), self._patience_s)
        except TimeoutError:
            detail = f"this node's name service did not answer for user {name!r} within {self._patience_s:g} s"
            raise LaunchRefused(Reason.NOT_STARTED, detail) from None

    def _begin(self, name: str) -> asyncio.Future[_User]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_User] = loop.create_future()
        self._under_way[name] = future

        def settle(user: _User | None, refused: LaunchRefused | None) -> None:
            self._under_way.pop(name, None)
            if user is not None:
                if len(self._known) >= USERS_MAX:
                    self._known.clear()
                self._known[name] = (time.monotonic(), user)
            if future.done():
                return
            if user is not None:
                future.set_result(user)
            elif refused is not None:
                future.set_exception(refused)
                future.exception()  # seen: nobody may be waiting any more

        def work() -> None:
            user, refused = None, None
            try:
                user = self._resolve(name)
            except LaunchRefused as err:
                refused = err
            except Exception as err:
                refused = LaunchRefused(Reason.UNIX_USER_UNMAPPED, f"user {name!r} could not be looked up: {err}")
            try:
                loop.call_soon_threadsafe(settle, user, refused)
            except RuntimeError:
                return  # the loop has ended; nobody waits

        threading.Thread(target=work, name=f"user-{name}", daemon=True).start()
        return future
