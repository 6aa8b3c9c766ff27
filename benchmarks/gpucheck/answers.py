"""Reads what the MPS programs and the driver say in text. Pure."""

from __future__ import annotations

import re
from typing import Any

#: Results of the CUDA driver API that a check can meet (cuda.h).
ERRORS = {
    0: "SUCCESS",
    1: "INVALID_VALUE",
    2: "OUT_OF_MEMORY",
    3: "NOT_INITIALIZED",
    46: "DEVICE_UNAVAILABLE",
    100: "NO_DEVICE",
    201: "INVALID_CONTEXT",
    218: "INVALID_PTX",
    304: "OPERATING_SYSTEM",
    400: "INVALID_HANDLE",
    401: "ILLEGAL_STATE",
    600: "NOT_READY",
    700: "ILLEGAL_ADDRESS",
    719: "LAUNCH_FAILED",
    801: "NOT_SUPPORTED",
    805: "MPS_CONNECTION_FAILED",
    806: "MPS_RPC_FAILURE",
    807: "MPS_SERVER_NOT_READY",
    808: "MPS_MAX_CLIENTS_REACHED",
    809: "MPS_MAX_CONNECTIONS_REACHED",
    810: "MPS_CLIENT_TERMINATED",
    999: "UNKNOWN",
}

_LIMIT_LINE = re.compile(r"Device pinned memory limit for device (\d+) set to (0x[0-9a-fA-F]+|\d+) bytes")
_PERCENT_LINE = re.compile(r"Active Threads Percentage set to ([0-9.]+)")
_SIZE = re.compile(r"(\d+)([KMGkmg]?)")
_FAULT_WORDS = ("fatal GPU error", "INACTIVE", "sticky error", "server context", "FAULT")


def error_name(code: int) -> str:
    """`2 OUT_OF_MEMORY`."""
    return f"{code} {ERRORS.get(code, '')}".strip()


def pids(lines: list[str]) -> list[int]:
    """The pids in an answer of get_server_list or get_client_list; other lines are messages."""
    return [int(line) for line in lines if re.fullmatch(r"\d+", line)]


def logged_limits_mib(server_log: str) -> list[int]:
    """Memory limits that a server says it has set, in MiB, in the order of the log."""
    return [int(value, 0) >> 20 for _, value in _LIMIT_LINE.findall(server_log)]


def logged_percentages(server_log: str) -> list[float]:
    """Thread percentages that a server says it has set."""
    return [float(value) for value in _PERCENT_LINE.findall(server_log)]


def fault_lines(server_log: str, limit: int = 12) -> str:
    """The lines of a server's log that tell of a fault, their time stamps cut off."""
    found = [line for line in server_log.splitlines() if any(word in line for word in _FAULT_WORDS)]
    return "\n".join(re.sub(r"^\[[^\]]*\]\s*", "", line) for line in found[:limit])


def size_mib(text: str) -> int | None:
    """MiB of a size as the control program prints it (`2G`, `900M`); None where it prints something else."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        return None
    value = int(match[1])
    return {"": value >> 20, "K": value >> 10, "M": value, "G": value << 10}[match[2].upper()]


def rows_of(card: dict[str, Any], pid: int) -> dict[str, int | None]:
    """In which process lists of a card the pid is, with its MiB there."""
    found: dict[str, int | None] = {}
    for name in ("compute", "graphics", "mps"):
        for row in card.get(name) or ():
            if row["pid"] == pid:
                found[name] = row["mib"]
    return found


def percent_sms(total_sms: int, percent: float) -> int:
    """How many multiprocessors a thread percentage should show a client: rounded down."""
    return int(total_sms * percent / 100)
