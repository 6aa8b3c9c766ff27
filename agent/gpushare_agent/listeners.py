"""Which process listens on a port of this node's loopback, by the kernel's own tables.

Imports os and the standard library's address parser. A connection is made for a job only where every socket that could
take it belongs to a process of that job, so that nobody reaches another's server through it.
"""

from __future__ import annotations

import ipaddress
import os
import struct
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

LISTENING = "0A"
LOOPBACKS = ("127.0.0.1", "::1")
# A job may hold any number of descriptors, and each look costs the agent some 10 us.
LOOKS_MAX = 32_768
_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))


class Listener(NamedTuple):
    """A listening socket: its address as text, and its inode."""

    address: str
    inode: int

    def takes(self, target: str) -> bool:
        """Whether a connection to `target` may come to it."""
        if target == "127.0.0.1":
            return self.address in ("127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1", "::ffff:0.0.0.0")
        return self.address in ("::1", "::")


def listening(port: int) -> list[Listener]:
    """Every socket that listens on this port, on whatever address."""
    found = []
    for table in _TABLES:
        try:
            lines = table.read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            address, _, port_hex = fields[1].partition(":")
            if fields[3] == LISTENING and int(port_hex, 16) == port:
                found.append(Listener(_address(address), int(fields[9])))
    return found


def targets(port: int, pids: Collection[int]) -> dict[str, frozenset[int]]:
    """The loopback addresses whose every listener on `port` is a socket of one of `pids`, with the inodes. Sockets
    behind more descriptors than `LOOKS_MAX` are not found."""
    found = listening(port)
    own = _sockets(pids, {each.inode for each in found})
    possible = {target: frozenset(each.inode for each in found if each.takes(target)) for target in LOOPBACKS}
    return {target: inodes for target, inodes in possible.items() if inodes and inodes <= own}


def _sockets(pids: Collection[int], wanted: Collection[int]) -> set[int]:
    """Those of the `wanted` inodes that are sockets of one of `pids`."""
    found: set[int] = set()
    looks = 0
    for pid in pids:
        directory = f"/proc/{pid}/fd"
        try:
            names = os.listdir(directory)
        except OSError:
            continue
        for name in names:
            if looks == LOOKS_MAX or len(found) == len(wanted):
                return found
            looks += 1
            try:
                link = os.readlink(f"{directory}/{name}")
            except OSError:
                continue
            if link.startswith("socket:[") and int(link[8:-1]) in wanted:
                found.add(int(link[8:-1]))
    return found


def _address(digits: str) -> str:
    """The kernel prints words of 32 bits in the host's own order."""
    words = [int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)]
    address = ipaddress.ip_address(struct.pack(f"={len(words)}I", *words))
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return f"::ffff:{mapped}" if mapped is not None else str(address)
