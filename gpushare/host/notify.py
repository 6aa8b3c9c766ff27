"""Tell systemd that a daemon is ready, where systemd asks (`Type=notify`).

Imports the standard library. Invariant: nobody listening, or nobody there to listen, is no error.
"""

from __future__ import annotations

import contextlib
import os
import socket


def ready() -> None:
    """What had to be done at the start has been done. May be called again."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    where = "\0" + address[1:] if address.startswith("@") else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.settimeout(1.0)
        channel.sendto(b"READY=1", where)
