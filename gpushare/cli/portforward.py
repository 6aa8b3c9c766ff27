"""`gpushare port-forward`: ports of this machine that lead to a server inside a job.

Imports click; the client only when a command runs. Invariants: it listens on this machine's loopback alone unless the
person asks otherwise in so many words; each TCP connection is a connection of its own to the job, so that a server that
is not up yet, or was started again, is reached by the next one; it ends with the job.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from gpushare.cli.session import run_with_client

if TYPE_CHECKING:
    from gpushare.client.aio import AsyncClient
    from gpushare.client.connect import Connection
    from gpushare.client.messages import Job

# A connection to the scheduler carries 100 streams; more of ours wait.
AT_ONCE_MAX = 64
SAY_AGAIN_S = 5.0
_READ_BYTES = 32 * 1024


@dataclass(frozen=True, slots=True)
class PortPair:
    """A port inside the job, and the one here that leads to it; 0 takes a free one."""

    remote: int
    local: int


@click.command("port-forward")
@click.option("--address", default="127.0.0.1", metavar="ADDR", help="Listen on this address (127.0.0.1).")
@click.option(
    "--allow-remote", is_flag=True, help="Let --address be one that other machines reach: without a password."
)
@click.argument("job", metavar="JOB[/TASK]")
@click.argument("ports", metavar="PORT[:LOCAL]...", nargs=-1, required=True)
def port_forward(job: str, ports: tuple[str, ...], address: str, allow_remote: bool) -> int | None:
    """Reach a server inside a job at a port of this machine, e.g. `gpushare port-forward 42 8888`. Ctrl-C ends it.

    LOCAL is the port here (the same); 0 takes a free one.
    """
    from gpushare.address import is_loopback

    pairs = [_pair(text) for text in ports]
    if not is_loopback(address) and not allow_remote:
        raise click.UsageError(
            f"--address {address} lets other machines in without a password; to allow it: --allow-remote"
        )

    async def work(client: AsyncClient) -> int:
        from gpushare.cli.connecting import one_task

        found, task_index = await one_task(client, job)
        _check_running(found, task_index, job)
        return await _Forwarder(client, found, task_index, job).run(address, pairs)

    return run_with_client(work)


def _check_running(job: Job, task_index: int, reference: str) -> None:
    """Raises FailedPreconditionError: a port that leads nowhere is not listened on."""
    from gpushare.cli.output import job_state
    from gpushare.client.messages import AttemptState
    from gpushare.errors import FailedPreconditionError
    from gpushare.reasons import Reason

    running = AttemptState.ATTEMPT_STATE_RUNNING
    if not any(task.task_index == task_index and task.state == running for task in job.tasks):
        told = f"Job {reference} does not run now; it is {job_state(job)}."
        raise FailedPreconditionError(Reason.NOT_RUNNING, told)


def _pair(text: str) -> PortPair:
    from gpushare.quantity import parse_int

    remote, colon, local = text.partition(":")
    port = parse_int(remote, "PORT", minimum=1, maximum=65_535)
    return PortPair(port, parse_int(local, "LOCAL", minimum=0, maximum=65_535) if colon else port)


class _Forwarder:
    def __init__(self, client: AsyncClient, job: Job, task_index: int, reference: str) -> None:
        self._client = client
        self._job = job
        self._task_index = task_index
        self._reference = reference
        self._room = asyncio.Semaphore(AT_ONCE_MAX)
        self._said: dict[str, float] = {}

    async def run(self, address: str, pairs: list[PortPair]) -> int:
        from gpushare.cli.follow import tell
        from gpushare.cli.interrupts import Interrupts

        with Interrupts() as interrupts:
            async with contextlib.AsyncExitStack() as servers:
                for pair in pairs:
                    await servers.enter_async_context(await self._listen(address, pair))
                ending = asyncio.create_task(self._job_ended())
                leaving = [asyncio.create_task(each.wait()) for each in (interrupts.cancel, interrupts.leave)]
                try:
                    await asyncio.wait({ending, *leaving}, return_when=asyncio.FIRST_COMPLETED)
                    if not ending.done():
                        return 0
                    ending.result()
                    tell(f"note: job {self._reference} has ended")
                    return 0
                finally:
                    for task in (ending, *leaving):
                        task.cancel()
                    await asyncio.gather(ending, *leaving, return_exceptions=True)

    async def _listen(self, address: str, pair: PortPair) -> asyncio.Server:
        from gpushare.errors import FailedPreconditionError
        from gpushare.reasons import Reason

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._serve(pair.remote, reader, writer)

        try:
            server = await asyncio.start_server(serve, address, pair.local)
        except OSError as err:
            told = f"Port {pair.local} of {address} cannot be listened on: {err.strerror or err}."
            way_out = f"Choose another, as in {pair.remote}:0."
            raise FailedPreconditionError(Reason.CONFIG_INVALID, told, what_to_do=way_out) from err
        port = server.sockets[0].getsockname()[1]
        host = f"[{address}]" if ":" in address else address
        print(f"{host}:{port} leads to port {pair.remote} of job {self._reference}", flush=True)
        return server

    async def _job_ended(self) -> None:
        from gpushare.client.waiting import follow_jobs

        async for _ in follow_jobs(self._client, [self._job.name]):
            pass

    async def _serve(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from gpushare.client.messages import ConnectionStart, Forward
        from gpushare.errors import GpushareError

        start = ConnectionStart(name=self._job.name, task_index=self._task_index, forward=Forward(port=port))
        try:
            async with self._room, self._client.connect(start) as connection:
                sending = asyncio.create_task(_send_all(reader, connection))
                try:
                    await _receive_all(connection, writer)
                finally:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)
        except GpushareError as err:
            self._complain(str(err))
        except OSError:
            pass  # whoever connected here has gone
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _complain(self, text: str) -> None:
        """Each trouble once in a while: a browser tries many times at once."""
        from gpushare.cli.follow import tell

        now_s = time.monotonic()
        if now_s - self._said.get(text, -SAY_AGAIN_S) >= SAY_AGAIN_S:
            self._said = {text: now_s}
            tell(f"warning: {text}")


async def _send_all(reader: asyncio.StreamReader, connection: Connection) -> None:
    while data := await reader.read(_READ_BYTES):
        await connection.send(data)
    await connection.end_input()


async def _receive_all(connection: Connection, writer: asyncio.StreamWriter) -> None:
    async for response in connection.received():
        if response.output:
            writer.write(response.output)
            await writer.drain()
            await connection.took(len(response.output))
