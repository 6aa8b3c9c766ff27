"""Capacity that is promised: held for a job that others make way for, or reserved in a window of time.

Pure: msgspec alone. Frozen facts; `placement.claims` turns them into what others may not use.
"""

from __future__ import annotations

import msgspec

from gpushare.core.model import Slice


class CapacityHold(msgspec.Struct, frozen=True):
    """Capacity that is for `job` and for nobody else from `since_ms` on: its planned places, and the jobs that make
    way; without such jobs it is waited for."""

    job: str
    slices: tuple[Slice, ...]
    victims: tuple[str, ...]
    since_ms: int


def is_kept_free(hold: CapacityHold) -> bool:
    """Nobody was told to make way: it is the place of a job that had waited too long, free as others end."""
    return not hold.victims


class ReservedCard(msgspec.Struct, frozen=True):
    """A part of one card: `milli` 1000 is the whole card."""

    node: str
    gpu_uuid: str
    milli: int
    mib: int


class Reservation(msgspec.Struct, frozen=True):
    """A window of time in which capacity is for one tenant (and of it for `users`, where named), or for nobody:
    `maintenance` of whole `nodes`. It comes again every `repeat_ms` (0: once) until `until_ms` (0: for ever)."""

    name: str
    start_ms: int
    end_ms: int
    tenant: str = ""
    users: tuple[str, ...] = ()
    maintenance: bool = False
    nodes: tuple[str, ...] = ()
    cards: tuple[ReservedCard, ...] = ()
    # Per node, with the cards' share of it: (node, cpu_milli, memory_mib).
    hosts: tuple[tuple[str, int, int], ...] = ()
    repeat_ms: int = 0
    until_ms: int = 0
    detail: str = ""
    created_by: str = ""
    created_ms: int = 0
