"""Which address of this host leads to the scheduler: there other nodes reach this one, where the admin names no other.

Imports asyncio, socket and the address parser. Nothing is sent: the kernel is asked which way it would go.
"""

from __future__ import annotations

import asyncio
import socket

from gpushare.address import parse_address

RESOLVE_TIMEOUT_S = 5.0


async def own_address_towards(server: str) -> str:
    """This host's address on the way to `server` (host:port); "" where there is no way now."""
    there = parse_address(server)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(RESOLVE_TIMEOUT_S):
            found = await loop.getaddrinfo(there.host, there.port, type=socket.SOCK_DGRAM)
    except (OSError, TimeoutError):
        return ""
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(address)
                return str(probe.getsockname()[0])
        except OSError:
            continue
    return ""
