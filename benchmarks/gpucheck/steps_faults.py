"""f) What one MPS client's end does to its neighbours: told to end, killed, faulting.

Runs only while the card is ours alone, since each of these may take every client of a server down.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.gpucheck.answers import error_name, fault_lines
from benchmarks.gpucheck.bench import Bench
from benchmarks.gpucheck.clients import Child, ChildError
from benchmarks.gpucheck.mps import Daemon, MpsError
from benchmarks.gpucheck.report import Findings

KERNEL_ROUNDS = 200_000
SETTLE_S = 1.0
ERROR_WITHIN_S = 5.0
RECOVERY_WAIT_S = 20.0


def _pair(bench: Bench, daemon: Daemon) -> tuple[Child, Child]:
    """Two busy clients of one server."""
    children = [bench.opened(bench.mps_environ(daemon))[0] for _ in range(2)]
    for child in children:
        child.ask("busy", rounds=KERNEL_ROUNDS)
    return children[0], children[1]


def _report(child: Child, pause_s: float | None = None) -> dict[str, Any]:
    """How a busy client fares over a pause; a client that does not answer any more is told as code -1."""
    try:
        first = child.ask("busy_report", timeout_s=10)
        time.sleep(SETTLE_S if pause_s is None else pause_s)
        second = child.ask("busy_report", timeout_s=10)
    except ChildError as failure:
        return {"code": -1, "more": 0, "words": str(failure)}
    more = second["done"] - first["done"]
    return {"code": second["code"], "more": more, "words": f"{more} more kernels, {error_name(second['code'])}"}


def terminate(bench: Bench, found: Findings) -> None:
    """f1) terminate_client on a busy client."""
    with bench.daemon() as daemon:
        server, _ = bench.server(daemon)
        victim, neighbour = _pair(bench, daemon)
        began = time.monotonic()
        said = " ".join(daemon.ask(f"terminate_client {server} {victim.pid}", timeout_s=30))
        found.figure("terminate_client_s", time.monotonic() - began)
        found.claim("terminate_client of a busy client answers 0", said.strip() == "0", said)
        error_s = bench.seconds_until(lambda: _report(victim, 0)["code"] != 0, ERROR_WITHIN_S)
        found.figure("client_notices_after_s", error_s)
        after = _report(victim)
        found.claim("the terminated client meets the sticky error 810", after["code"] == 810, after["words"])
        after = _report(neighbour)
        found.claim("its neighbour goes on", after["code"] == 0 and after["more"] > 0, after["words"])
        found.figure("server status", daemon.status(server))


def kill(bench: Bench, found: Findings) -> None:
    """f2) SIGKILL of a busy client."""
    with bench.daemon() as daemon:
        server, _ = bench.server(daemon)
        victim, neighbour = _pair(bench, daemon)
        victim.kill()
        time.sleep(SETTLE_S)
        after = _report(neighbour)
        found.figure("neighbour after a SIGKILL", after["words"])
        found.claim(
            "one SIGKILL of a busy client left its neighbour alive",
            after["code"] == 0 and after["more"] > 0,
            after["words"],
        )
        found.figure("server status", daemon.status(server))
        found.figure("server.log", fault_lines(daemon.text("server.log")) or None)


def fault(bench: Bench, found: Findings) -> None:
    """f3) An illegal access in one client: who is hit, and how long until the card serves again."""
    with bench.daemon() as daemon:
        server, _ = bench.server(daemon)
        culprit, neighbour = _pair(bench, daemon)
        code = culprit.ask("crash", timeout_s=60)["code"]
        found.figure("error of the culprit", error_name(code))
        time.sleep(SETTLE_S)
        after = _report(neighbour)
        found.figure("neighbour after a fault", after["words"])
        found.claim("a fault of one client reaches its neighbours", after["code"] != 0, after["words"])
        found.figure("server status", _status(daemon, server))
        newcomer = bench.start(bench.mps_environ(daemon))
        found.figure("a newcomer before they have gone", error_name(newcomer.ask("init", timeout_s=30)["code"]))
        for child in (newcomer, culprit, neighbour):
            child.close()
        began = time.monotonic()
        back = bench.seconds_until(lambda: _serves(bench, daemon), RECOVERY_WAIT_S)
        found.figure("serves_again_after_s", None if back is None else time.monotonic() - began)
        found.claim("once all clients have gone, new ones are served", back is not None, f"{back} s")
        text = daemon.text("server.log")
        found.figure("server.log", fault_lines(text) or None)
        found.claim(
            "server.log names the culprit's pid", str(culprit.pid) in fault_lines(text, limit=1000), culprit.pid
        )


def _status(daemon: Daemon, server: int) -> str:
    try:
        return daemon.status(server)
    except MpsError as failure:
        return str(failure)


def _serves(bench: Bench, daemon: Daemon) -> bool:
    """Whether a new client gets a context through MPS."""
    try:
        child = bench.start(bench.mps_environ(daemon))
        said = child.ask("init", timeout_s=20)
    except ChildError:
        return False
    child.close()
    return bool(said["code"] == 0 and said.get("mps") == 1)
