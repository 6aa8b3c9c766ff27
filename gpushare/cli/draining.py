"""Waiting until a node is drained: what `gpushare node drain --wait` does after the drain itself.

Imports the client. Invariant: whatever ends the waiting, the drain stays in force, and the person is told so.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING

from gpushare.cli.interrupts import Interrupts
from gpushare.cli.output import short_name
from gpushare.client.retry import may_pass
from gpushare.errors import FailedPreconditionError, GpushareError
from gpushare.reasons import Reason

if TYPE_CHECKING:
    from gpushare.client.aio import AsyncClient
    from gpushare.client.messages import Node

_FIRST_LOOK_S = 0.2
_LOOK_EVERY_S = 2.0


async def wait_drained(client: AsyncClient, node: Node, limit_s: float | None) -> Node | int:
    """The node once nothing runs on it any more, or the exit code where a signal ended the waiting. Raises
    FailedPreconditionError after `limit_s`, and what the scheduler refuses. One that is out of reach is waited for.
    """
    name, pause_s = short_name(node.name), _FIRST_LOOK_S
    end_s = None if limit_s is None else time.monotonic() + limit_s
    told = -1
    with Interrupts() as interrupts:
        while not node.drained:
            if node.task_count != told:
                told = node.task_count
                _note(f"node {name} is draining: {_tasks(told)} left there")
            left_s = pause_s if end_s is None else min(pause_s, end_s - time.monotonic())
            if left_s <= 0:
                raise FailedPreconditionError(
                    Reason.NODE_BUSY,
                    f"node {name} still has {_tasks(told)} after the time given; the drain stays in force.",
                    what_to_do=_way_back(name),
                )
            if await _is_asked_to_stop(interrupts, left_s):
                _note(f"the drain of node {name} stays in force; {_way_back(name)}")
                return interrupts.exit_code
            pause_s = min(2 * pause_s, _LOOK_EVERY_S)
            node = await _look(client, node)
    return node


async def _look(client: AsyncClient, node: Node) -> Node:
    try:
        return await client.get_node(node.name)
    except GpushareError as err:
        if not may_pass(err):
            raise
        return node


async def _is_asked_to_stop(interrupts: Interrupts, wait_s: float) -> bool:
    asked = [asyncio.ensure_future(event.wait()) for event in (interrupts.cancel, interrupts.leave)]
    try:
        done, _ = await asyncio.wait(asked, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)
    finally:
        for each in asked:
            each.cancel()


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"


def _way_back(name: str) -> str:
    return f"`gpushare node uncordon {name}` takes it back."


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)
