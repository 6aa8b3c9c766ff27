"""`gpushare shell`, `attach` and `exec`: sitting at a job.

Imports click; the client only when a command runs. Invariants: the codes of these commands are the job's, or of `exec`
its own process's; leaving, or losing the terminal, ends what `exec` began and never the job.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from gpushare.cli.session import run_with_client, with_client
from gpushare.cli.submit import job_options, run_job

if TYPE_CHECKING:
    from gpushare.client.aio import AsyncClient
    from gpushare.client.messages import Job

# The job's own account says which shell that is. No login shell: /etc/profile would set PATH anew, and what was active
# where the job was submitted, a virtual environment for one, would be gone.
SHELL = ("/bin/sh", "-c", 'exec "${SHELL:-/bin/sh}" -i')


@click.command()
@job_options
def shell(dry_run: bool, parsable: bool, **options: Any) -> int | None:
    """Run a shell as a job and sit at it, with your PATH and directory. It ends with `exit` or Ctrl-D.

    `~.` at the beginning of a line leaves it running, as losing the terminal does; `gpushare attach` comes back.
    """
    from gpushare.cli import terminal

    if not terminal.is_seat():
        raise click.UsageError("a shell needs a terminal; for a script: gpushare run SCRIPT")
    options |= {"words": SHELL, "is_command": True}
    return run_job(dry_run, parsable, options, pty=True, interactive=False)


@click.command()
@click.argument("job", metavar="JOB[/TASK]")
@with_client
async def attach(client: AsyncClient, job: str) -> int | None:
    """Sit at a job again: its output as it comes, and what you type where it takes input. Returns its code.

    `~.` at the beginning of a line leaves it running; so does Ctrl-C where the job has no terminal of its own.
    """
    from gpushare.cli import terminal
    from gpushare.cli.feeding import Feeder
    from gpushare.cli.follow import run_to_end, tell
    from gpushare.cli.interrupts import Interrupts
    from gpushare.client.waiting import has_ended
    from gpushare.errors import FailedPreconditionError
    from gpushare.reasons import Reason

    found, task_index = await one_task(client, job)
    if has_ended(found):
        told = f"Job {found.id} has ended."
        raise FailedPreconditionError(Reason.NOT_RUNNING, told, what_to_do=f"Its output: gpushare logs {job}")
    if found.spec.pty and found.spec.stdin and not os.isatty(terminal.STDIN_FD):
        raise click.UsageError(
            f"job {job} has a terminal, and your input is none; to read its output: gpushare logs -f {job}"
        )
    if not found.spec.pty:
        tell(f"note: job {job} has no terminal; its output follows, and Ctrl-C leaves it running")
    feeder = Feeder(client, found, task_index)
    with Interrupts() as interrupts:
        await feeder.look_back()
        return await run_to_end(client, [found], job, interrupts, feeder, cancels=False)


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.option("--pty/--no-pty", "-t/-T", default=None, help="Give it a terminal (where you sit at one).")
@click.argument("job", metavar="JOB[/TASK]")
@click.argument("words", metavar="-- CMD ARG...", nargs=-1, type=click.UNPROCESSED)
def exec_(job: str, words: tuple[str, ...], pty: bool | None) -> int | None:
    """Run a command beside a running task: same user, same cards, same limits. Returns the command's code.

    It ends with the job, and when this command does.
    """
    from gpushare.cli import terminal

    command = words[1:] if words[:1] == ("--",) else words
    if not command:
        raise click.UsageError("nothing to run; write -- and a command behind the job")
    with_terminal = terminal.is_seat() if pty is None else pty
    if with_terminal and not terminal.is_seat():
        raise click.UsageError("--pty needs a terminal; leave it out, or write --no-pty")

    async def work(client: AsyncClient) -> int:
        from gpushare.cli.feeding import window_size
        from gpushare.cli.interrupts import Interrupts
        from gpushare.cli.talking import talk
        from gpushare.client.messages import ConnectionStart, Exec

        found, task_index = await one_task(client, job)
        wanted = Exec(argv=command, pty=with_terminal)
        if with_terminal:
            wanted.term = os.environ.get("TERM", "")[:64]
            wanted.window.CopyFrom(window_size())
        start = ConnectionStart(name=found.name, task_index=task_index, exec=wanted)
        with Interrupts() as interrupts:
            async with client.connect(start) as connection:
                return await talk(connection, interrupts)

    return run_with_client(work)


async def one_task(client: AsyncClient, text: str) -> tuple[Job, int]:
    """The one job and task that a person means. Raises InvalidArgumentError where it could be several."""
    from gpushare.cli.refs import find
    from gpushare.errors import invalid_field

    found = await find(client, text, with_task=True)
    if len(found.jobs) > 1:
        raise invalid_field("JOB", f"{text} is an array; name one of its jobs, as in {found.array_id}_0")
    job = found.jobs[0]
    tasks = max(job.spec.tasks, 1)
    if found.task_index is None and tasks > 1:
        raise invalid_field("JOB", f"{text} has {tasks} tasks; name one of them, as in {text}/0")
    task_index = found.task_index or 0
    if task_index >= tasks:
        raise invalid_field("JOB", f"there is no task {task_index}; the job has 0 to {tasks - 1}")
    return job, task_index
