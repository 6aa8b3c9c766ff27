"""Ctrl-C, SIGTERM and a lost terminal, as events that an async command waits for.

Imports the standard library. Invariants: the first Ctrl-C asks to cancel, the second to leave at once; losing the
terminal asks to leave and never to cancel; a signal that was ignored when the command began stays ignored, as `nohup`
and `&` want it.
"""

from __future__ import annotations

import asyncio
import signal
from types import TracebackType

from gpushare.cli.exits import EXIT_INTERRUPTED


class Interrupts:
    """`with Interrupts() as interrupts` inside a running event loop.

    `cancel` is set by the first SIGINT or SIGTERM, `leave` by the second or by SIGHUP; `exit_code` is 128 plus the
    newest of them.
    """

    def __init__(self) -> None:
        self.cancel = asyncio.Event()
        self.leave = asyncio.Event()
        self.exit_code = EXIT_INTERRUPTED
        self._installed: list[signal.Signals] = []

    def __enter__(self) -> Interrupts:
        loop = asyncio.get_running_loop()
        for number, handler in (
            (signal.SIGINT, self._interrupted),
            (signal.SIGTERM, self._interrupted),
            (signal.SIGHUP, self._hung_up),
        ):
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, handler, number)
                self._installed.append(number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        loop = asyncio.get_running_loop()
        for number in self._installed:
            loop.remove_signal_handler(number)

    def _interrupted(self, number: signal.Signals) -> None:
        self.exit_code = 128 + number
        (self.leave if self.cancel.is_set() else self.cancel).set()

    def _hung_up(self, number: signal.Signals) -> None:
        self.exit_code = 128 + number
        self.leave.set()
