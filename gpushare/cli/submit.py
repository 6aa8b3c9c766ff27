"""`gpushare submit` and `gpushare run`: a job from a script or a command line.

Imports click; the client only when a command runs. Invariant: the two commands take the same options and make the
same job.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from gpushare.cli.options import tenant_option
from gpushare.cli.session import run_with_client

if TYPE_CHECKING:
    from gpushare.cli.interrupts import Interrupts
    from gpushare.cli.scripts import Directives
    from gpushare.client.aio import AsyncClient
    from gpushare.client.messages import CreateJobResponse, JobSpec

_Function = TypeVar("_Function", bound=Callable[..., Any])

_EPILOG = (
    "SCRIPT is read now and stored with the job, up to 1 MiB; its #GPUSHARE and #SBATCH lines are options, too, and "
    "give way to what is typed. A command stands behind --. Options come before either, what follows belongs to the "
    "job."
)

_JOB_OPTIONS = (
    click.option("--gpus", metavar="N", help='"0.25" or "25%" of one card, "2" whole cards, "0" none.'),
    click.option("--gpu-memory", metavar="SIZE", help="Memory of the share, e.g. 12G; alone it sets the share, too."),
    click.option(
        "--model",
        default="",
        metavar="A,B",
        help="Card model, or several that will do, as `gpushare gpus` prints them.",
    ),
    click.option("--tasks", metavar="N", help="A gang: so many tasks, started together or not at all."),
    click.option("--min-tasks", metavar="N", help="Of them, so many must start together; the others follow."),
    click.option(
        "--topology",
        metavar="any|node|domain",
        help="How close the tasks must be: anywhere (any), on one node, on cards of one domain of a node.",
    ),
    click.option(
        "--on-task-failure",
        metavar="stop|continue",
        help="When one task fails: stop the others (stop), or go on while --min-tasks are left and replace it.",
    ),
    click.option("--cpus", metavar="N", help="CPUs a task, e.g. 4 or 0.5 (the card's share of the node)."),
    click.option("--host-memory", metavar="SIZE", help="Host memory a task, e.g. 16G (the card's share of the node)."),
    click.option("--time", metavar="TIME", help="Longest run time, e.g. 2h or 1h30m (the tenant's default)."),
    click.option(
        "--signal",
        metavar="SIG@TIME[:leader|all]",
        help="Send it so long before its time limit, e.g. USR1@10m: to the task's first process (leader), or to all.",
    ),
    click.option("--start-within", metavar="TIME", help="Give up when it has not started so long after its submit."),
    click.option("--priority", metavar="N", help="Higher goes first within the tenant."),
    click.option(
        "--qos",
        metavar="burst|guaranteed",
        help="burst may borrow what is idle (burst); guaranteed stays within the tenant's guarantee and is never "
        "reclaimed.",
    ),
    click.option(
        "--preemption",
        metavar="suspend|requeue|cancel",
        help="When its capacity is reclaimed: park it where that can be done, queue it again (requeue), or end it.",
    ),
    click.option("--after", multiple=True, metavar="JOB", help="Start once this job or array has begun; repeatable."),
    click.option("--after-ok", multiple=True, metavar="JOB", help="Start once it has succeeded; repeatable."),
    click.option("--after-any", multiple=True, metavar="JOB", help="Start once it has ended; repeatable."),
    click.option(
        "--name", metavar="NAME", help="A name by which the other commands find it: a-z, 0-9 and -, at most 63."
    ),
    tenant_option,
    click.option("--chdir", metavar="DIR", help="Working directory (the current one)."),
    click.option("--env", multiple=True, metavar="K=V", help="Set a variable; may be repeated."),
    click.option("--env-file", metavar="FILE", help="Variables from a file of K=V lines; --env wins."),
    click.option(
        "--export",
        metavar="all|none|A,B",
        help="Variables to take along (PATH VIRTUAL_ENV CONDA_* PYTHONPATH LD_LIBRARY_PATH LANG TERM).",
    ),
    click.option("--label", multiple=True, metavar="K=V", help="A label of the job; may be repeated."),
    click.option("--node-label", multiple=True, metavar="K=V", help="Only nodes with this label; may be repeated."),
    click.option(
        "--array", metavar="0-99[%8]", help="One job per index: ranges and single ones, 1,3,5-7; %8: 8 of them at once."
    ),
    click.option(
        "--output",
        metavar="FILE",
        help="Append stdout (and stderr) to this file on the node in place of the log: %j job, %A array, %a index, "
        "%t task, %u user, %x name.",
    ),
    click.option("--error", metavar="FILE", help="The same for stderr alone."),
    click.option("--no-directives", is_flag=True, help="Leave the #GPUSHARE and #SBATCH lines of the script alone."),
    click.option("--dry-run", is_flag=True, help="Check everything, queue nothing."),
    click.option("--parsable", is_flag=True, help="Print the id alone."),
    click.option("--fence", metavar="soft|server|hard", help="The weakest fence to accept (the best there is)."),
    click.option(
        "--on-disconnect",
        metavar="keep|stop-and-requeue",
        help="When its node is out of reach: run on (keep), or stop there and start elsewhere.",
    ),
    click.option(
        "--visible-devices",
        metavar="uuid|index",
        help="How CUDA_VISIBLE_DEVICES names the cards (uuid); index is for programs that cannot take UUIDs.",
    ),
    click.option("--max-retries", metavar="N", help="Start it again so often when it fails by itself (0)."),
    click.option(
        "--requeue-exit-code",
        multiple=True,
        metavar="N[,N]",
        help="When it ends with this code, queue it again with its id and its place, free of retries; repeatable.",
    ),
    click.option("--grace", metavar="TIME", help="Between SIGTERM and SIGKILL (10s)."),
)


def job_options(function: _Function) -> _Function:
    """The options that say what a job asks for and how it runs."""
    for option in reversed(_JOB_OPTIONS):
        function = option(function)
    return function


class JobCommand(click.Command):
    """Ends its options at the first word that is none, and remembers whether that was --."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        rest = super().parse_args(ctx, args)
        words = ctx.params["words"]
        position = len(given) - len(words)
        ctx.params["is_command"] = position > 0 and given[position - 1] == "--"
        return rest

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "[OPTIONS] (SCRIPT ARG... | -- CMD ARG...)")


_COMMAND_SETTINGS: dict[str, Any] = {"allow_interspersed_args": False}


@click.command(cls=JobCommand, context_settings=_COMMAND_SETTINGS, epilog=_EPILOG)
@job_options
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def submit(dry_run: bool, parsable: bool, **options: Any) -> int | None:
    """Queue a job and return at once."""
    asked = _asked_of(options)

    async def work(client: AsyncClient) -> None:
        job = await _completed(client, asked)
        answer = await _created(client, job, validate_only=dry_run)
        _print_notices(answer, job)
        if dry_run:
            print(f"ok: {_count_text(_would_be(job))} would be queued, nothing was")
            return
        reference = _reference(client, answer)
        if parsable:
            print(reference)
        elif answer.jobs[0].array_id:
            print(f"submitted array {reference}: {_count_text(len(answer.jobs))}")
        else:
            print(f"submitted job {reference}")

    return run_with_client(work, asked.options["tenant"])


@click.command(cls=JobCommand, context_settings=_COMMAND_SETTINGS, epilog=_EPILOG)
@job_options
@click.option("--pty", is_flag=True, help="Give the job a terminal, yours where you sit at one; stderr joins stdout.")
@click.option("-i", "--interactive", is_flag=True, help="Give the job what comes on standard input here.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def run(dry_run: bool, parsable: bool, pty: bool, interactive: bool, **options: Any) -> int | None:
    """Run a job: follow its output, return its code. Ctrl-C cancels it, losing the terminal does not.

    Its standard input is empty, unless -i or --pty says otherwise. With --pty Ctrl-C and all other keys are the job's;
    `~.` at the beginning of a line leaves it running, and `gpushare attach` comes back.
    """
    from gpushare.cli import capture

    if not (interactive or pty or dry_run) and options["words"][:1] != ("-",) and capture.is_fed():
        _note("what is piped in does not reach the job; -i passes it on")
    return run_job(dry_run, parsable, options, pty=pty, interactive=interactive)


def run_job(dry_run: bool, parsable: bool, options: dict[str, Any], *, pty: bool, interactive: bool) -> int | None:
    """Submits a job and stays with it to its end."""
    from gpushare.cli import terminal
    from gpushare.cli.feeding import Feeder
    from gpushare.cli.follow import run_to_end
    from gpushare.cli.interrupts import Interrupts

    if interactive and pty:
        raise click.UsageError("-i is for pipes; --pty takes input by itself where you sit at a terminal")
    asked = _asked_of(options, pty=pty)
    one_task = asked.spec.tasks in (0, 1) and not asked.spec.array_indexes
    if interactive and not one_task:
        raise click.UsageError("-i is for a job of one task; give several their input with gpushare attach")
    asked.spec.stdin = interactive or (pty and one_task and terminal.is_seat())

    async def work(client: AsyncClient) -> int:
        job = await _completed(client, asked)
        # From before the job exists, so that no Ctrl-C can fall between its start and its cancelling.
        with Interrupts() as interrupts:
            creating = _created(client, job, validate_only=dry_run)
            answer = await _unless_left(creating, interrupts)
            if answer is None:
                return interrupts.exit_code
            if dry_run:
                _print_notices(answer, job)
                print(f"ok: {_count_text(_would_be(job))} would run, nothing was started")
                return 0
            reference = _reference(client, answer)
            takes_input = job.spec.stdin and len(answer.jobs) == 1
            _print_way_back(reference, "attach" if takes_input else "logs -f", parsable=parsable)
            _print_notices(answer, job)
            if pty and not takes_input:
                _note("the job gets a terminal but no input, because you sit at no terminal, or it has several tasks")
            feeder = Feeder(client, answer.jobs[0]) if takes_input else None
            told = {notice.partition(":")[0] for notice in answer.notices}
            return await run_to_end(client, answer.jobs, reference, interrupts, feeder, told=told)

    return run_with_client(work, asked.options["tenant"])


async def _unless_left(
    creating: Coroutine[Any, Any, CreateJobResponse], interrupts: Interrupts
) -> CreateJobResponse | None:
    """The answer, or None where the person would not wait for it any longer."""
    answering = asyncio.ensure_future(creating)
    leaving = asyncio.ensure_future(interrupts.leave.wait())
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            return answering.result()
        print("note: left without an answer; `gpushare jobs` shows whether it was queued", file=sys.stderr)
        return None
    finally:
        answering.cancel()
        leaving.cancel()


def _print_way_back(reference: str, command: str, *, parsable: bool) -> None:
    text = f"job {reference}; to come back: gpushare {command} {reference}; to end it: gpushare cancel {reference}"
    print(reference if parsable else text, file=sys.stderr, flush=True)


class _Asked(NamedTuple):
    """A job as it was asked for, by the options of the command and the directives of its script."""

    spec: JobSpec
    options: dict[str, Any]
    directives: Directives


def _asked_of(options: dict[str, Any], *, pty: bool = False) -> _Asked:
    from gpushare.cli import capture
    from gpushare.cli.scripts import Directives, merge
    from gpushare.names import TextError

    script, argv = capture.script_and_argv(options["words"], is_command=options["is_command"])
    directives = Directives(options["words"][0])
    if script and not options["no_directives"]:
        options, directives = merge(options, script, options["words"][0], submit.params)
    if script:
        _note_late_options(argv, options)
    try:
        return _Asked(_spec_of(options, script, argv, pty=pty), options, directives)
    except TextError as err:
        raise directives.located(err) from err


async def _created(client: AsyncClient, asked: _Asked, *, validate_only: bool) -> CreateJobResponse:
    """Raises GpushareError, with the line of the script where one is to blame."""
    from gpushare.errors import GpushareError

    try:
        return await client.create_job(asked.spec, tenant=asked.options["tenant"], validate_only=validate_only)
    except GpushareError as err:
        raise asked.directives.located_refusal(err) from err


async def _completed(client: AsyncClient, asked: _Asked) -> _Asked:
    """With what only the cluster knows: jobs by their names, and models of a type of cards."""
    from gpushare.client.spec import request_of

    await _add_dependencies(client, asked.spec, asked.options)
    directives, models = await asked.directives.with_models(client)
    if models:
        asked.spec.resources.gpu_model = request_of(None, None, models).gpu_model
    return asked._replace(directives=directives)


def _spec_of(options: dict[str, Any], script: bytes, argv: list[str], *, pty: bool) -> JobSpec:
    from gpushare.cli import capture
    from gpushare.cli.feeding import window_size
    from gpushare.client.spec import job_spec

    return job_spec(
        argv,
        script=script,
        working_directory=capture.working_directory(options["chdir"]),
        env=capture.explicit_env(options["env"], options["env_file"]),
        captured_env=capture.captured_env(options["export"]),
        labels=capture.split_pairs(options["label"], "label"),
        node_labels=capture.split_pairs(options["node_label"], "node_label"),
        gpus=options["gpus"],
        gpu_memory=options["gpu_memory"],
        model=options["model"],
        cpus=options["cpus"],
        host_memory=options["host_memory"],
        tasks=options["tasks"],
        array=options["array"],
        time=options["time"],
        priority=options["priority"],
        name=options["name"],
        max_retries=options["max_retries"],
        grace=options["grace"],
        fence=options["fence"],
        on_disconnect=options["on_disconnect"],
        min_tasks=options["min_tasks"],
        qos=options["qos"],
        preemption=options["preemption"],
        on_task_failure=options["on_task_failure"],
        topology=options["topology"],
        start_within=options["start_within"],
        early_signal=options["signal"],
        requeue_exit_codes=options["requeue_exit_code"],
        output=options["output"],
        error=options["error"],
        visible_devices=options["visible_devices"],
        pty=pty,
        window=window_size() if pty else None,
    )


async def _add_dependencies(client: AsyncClient, spec: JobSpec, options: dict[str, Any]) -> None:
    """The jobs to wait for, which a person may call by their names."""
    from gpushare.cli.refs import resource_of
    from gpushare.client.messages import Dependency
    from gpushare.client.spec import AFTER

    for option, kind in (("after", "after"), ("after_any", "afterany"), ("after_ok", "afterok")):
        for text in options[option]:
            spec.after.append(Dependency(job=await resource_of(client, text), kind=AFTER[kind]))


def _reference(client: AsyncClient, answer: CreateJobResponse) -> str:
    """What the other commands take for this job or array."""
    first = answer.jobs[0]
    own_id = first.array_id or first.id
    return own_id if first.tenant == client.settings.tenant else f"{first.tenant}/{own_id}"


def _print_notices(answer: CreateJobResponse, asked: _Asked) -> None:
    from gpushare.cli import capture
    from gpushare.cli.hints import card_hint
    from gpushare.cli.inert import inert
    from gpushare.cli.output import request_sentence
    from gpushare.quantity import format_duration_ms

    for note in asked.directives.notes():
        _note(inert(note))
    spec = answer.jobs[0].spec
    if asked.options["time"] is None and spec.HasField("max_run_duration"):
        limit = format_duration_ms(spec.max_run_duration.ToMilliseconds())
        _note(f"no --time was given, so it runs for {limit} at most, as its tenant has it")
    if answer.default_request_used:
        request = request_sentence(spec.resources)
        _note(f"no --gpus was given, so it asks for {request}; to share a card: --gpus 0.25, for none: --gpus 0")
    for notice in answer.notices:
        _note(f"it would wait: {inert(notice)}")
    if answer.dropped_env:
        _note(f"left out of the captured environment, because only gpushare sets them: {' '.join(answer.dropped_env)}")
    resources = answer.jobs[0].spec.resources
    spec = asked.spec
    hint = card_hint((spec.script, *spec.argv), resources.gpus if resources.HasField("gpus") else 1)
    if hint:
        _note(hint)
    unreadable = capture.left_out(asked.options["export"])
    if unreadable:
        _note(f"left out of the captured environment, because they are not UTF-8: {inert(' '.join(unreadable))}")


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)


def _note_late_options(arguments: Sequence[str], options: Mapping[str, Any]) -> None:
    """Of those of a script's arguments that gpushare would have taken before it, and was not given."""
    flags = {flag: parameter for parameter in submit.params for flag in parameter.opts if flag.startswith("--")}
    for argument in arguments:
        flag = argument.partition("=")[0]
        if argument == "--":
            return
        if flag in flags and not options.get(flags[flag].name or ""):
            _note(f"{flag} stands behind the script, which gets it; what is meant for gpushare stands before it")


def _would_be(asked: _Asked) -> int:
    """How many jobs it would be; a dry run's answer has the spec of all children once."""
    return len(asked.spec.array_indexes) or 1


def _count_text(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"
