"""`gpushare logs`: what a job printed, whole or as it comes.

Imports click; the client only when a command runs. Invariants: Ctrl-C only stops the reading, never the job; a stream
that cannot be read is an error and not an empty output.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import click

from gpushare.cli.options import JSON, output_option
from gpushare.cli.session import with_client

if TYPE_CHECKING:
    from gpushare.cli.refs import Found
    from gpushare.cli.sink import LogSink
    from gpushare.client.aio import AsyncClient
    from gpushare.client.messages import Job


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended; Ctrl-C leaves the job alone.")
@click.option("--attempt", metavar="N", help="This attempt in place of the newest.")
@output_option
@click.argument("job", metavar="JOB[/TASK]")
@with_client
async def logs(client: AsyncClient, job: str, follow: bool, attempt: str | None, output: str) -> int | None:
    """Print a job's output: stdout to stdout, stderr to stderr.

    Of a gang, or of an array, every task's lines come with the task's number before them.
    """
    from gpushare.cli.refs import find
    from gpushare.cli.sink import JsonSink, TextSink
    from gpushare.quantity import parse_int

    number = parse_int(attempt, "attempt", minimum=1) if attempt is not None else 0
    found = await find(client, job, with_task=True)
    _check_task(found)
    sink: LogSink = JsonSink() if output == JSON else TextSink()
    if follow:
        return await _follow(client, found, number, sink)
    try:
        for each in found.jobs:
            await _print_job(client, each, found, number, sink)
    finally:
        await sink.close()
    return None


def _check_task(found: Found) -> None:
    from gpushare.errors import invalid_field

    tasks = max(found.jobs[0].spec.tasks, len(found.jobs[0].tasks), 1)
    if found.task_index is not None and found.task_index >= tasks:
        last = f"0 to {tasks - 1}" if tasks > 1 else "0 alone"
        raise invalid_field("JOB", f"there is no task {found.task_index}; the job has {last}")


async def _follow(client: AsyncClient, found: Found, number: int, sink: LogSink) -> int | None:
    from gpushare.cli.follow import OutputFollower, follow_and_flush, tell
    from gpushare.cli.interrupts import Interrupts

    follower = OutputFollower(client, found.jobs, sink, task_index=found.task_index, attempt=number, fail_fast=True)
    with Interrupts() as interrupts:
        following = asyncio.create_task(follow_and_flush(follower, sink))
        leaving = [asyncio.create_task(each.wait()) for each in (interrupts.cancel, interrupts.leave)]
        try:
            await asyncio.wait({following, *leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                return interrupts.exit_code
            ended = following.result()
        finally:
            for task in (following, *leaving):
                task.cancel()
            await asyncio.wait({following, *leaving}, timeout=1.0)
    for error in follower.errors:
        tell(f"warning: {error}")
    for each in ended.values():
        if len(ended) == 1 and not any(task.HasField("start_time") for task in each.tasks):
            tell(_silence(each))
    return None


async def _print_job(client: AsyncClient, job: Job, found: Found, number: int, sink: LogSink) -> None:
    from gpushare.cli.follow import tell
    from gpushare.cli.outputfiles import OutputNotes

    wanted = [task for task in job.tasks if found.task_index in (None, task.task_index)]
    started = [task for task in wanted if task.HasField("start_time") or number]
    if not started and len(found.jobs) == 1:
        tell(_silence(job))
    notes = OutputNotes(tell)
    for task in started:
        notes.on_read(job, task, number or task.number)
        await _print_task(client, job, task.task_index, number or task.number, len(found.jobs), sink)


def _silence(job: Job) -> str:
    """Why a job that never started has printed nothing."""
    from gpushare.cli.output import job_state, reason_sentence
    from gpushare.client.messages import JobState
    from gpushare.client.waiting import has_ended

    said = f"note: job {job.id} has not printed anything"
    if not has_ended(job):
        return f"{said}, because it has not started"
    ended = "it FAILED" if job.state == JobState.JOB_STATE_FAILED else f"it was {job_state(job)}"
    return f"{said}; {ended}: {reason_sentence(job.reason, job.detail)}"


async def _print_task(
    client: AsyncClient, job: Job, task_index: int, attempt: int, job_count: int, sink: LogSink
) -> None:
    from gpushare.cli.follow import label_of
    from gpushare.cli.sink import STDERR_FD, STDOUT_FD, Source
    from gpushare.client.messages import OutputStream

    streams = [(STDOUT_FD, OutputStream.OUTPUT_STREAM_STDOUT)]
    if not job.spec.pty:
        streams.append((STDERR_FD, OutputStream.OUTPUT_STREAM_STDERR))
    for fd, stream in streams:
        source = Source(job.name, task_index, attempt, fd, label_of(job, task_index, job_count))
        answers = client.stream_logs(job.name, task_index=task_index, attempt=attempt, stream=stream)
        async with contextlib.aclosing(answers):
            async for answer in answers:
                await sink.chunk(source, answer)
        await sink.end(source)
