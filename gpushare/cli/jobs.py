"""`gpushare jobs`, `job`, `explain` and `cancel`: what there is, why it waits, and its end.

Imports click; the client only when a command runs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from gpushare.cli.options import JSON, WIDE, not_empty, output_option, tenant_option
from gpushare.cli.session import run_with_client, with_client

if TYPE_CHECKING:
    from gpushare.client.aio import AsyncClient
    from gpushare.client.messages import Counterfactual, Dependency, Job, JobExplanation, TaskAttempt
    from gpushare.errors import NotFoundError

_STATES = ("QUEUED", "STARTING", "RUNNING", "SUSPENDED", "CANCELLING", "SUCCEEDED", "FAILED", "CANCELLED")
_ENDED = frozenset({"SUCCEEDED", "FAILED", "CANCELLED"})
_CANCELLABLE = ("QUEUED", "STARTING", "RUNNING", "SUSPENDED")

_COLUMNS = ("JOB", "NAME", "TENANT", "USER", "STATE", "GPUS", "TIME", "NODES", "REASON")
_WIDE_COLUMNS = (
    "JOB", "NAME", "TENANT", "USER", "STATE", "TASK", "NODE", "GPU", "MILLI", "MIB", "TIER", "ENFORCEMENT", "EXIT",
    "CREATED", "TIME", "REASON",
)  # fmt: skip

_TASK_COLUMNS = (
    "TASK", "ATTEMPT", "STATE", "NODE", "GPU", "MILLI", "MIB", "USED", "SM", "TIER", "ENFORCEMENT", "EXIT", "REASON",
)  # fmt: skip


@click.command()
@click.option("-a", "--all", "show_ended", is_flag=True, help="Ended jobs, too.")
@click.option("--user", default="", metavar="U", callback=not_empty, help="Jobs of this user.")
@click.option("-A", "--all-tenants", is_flag=True, help="Jobs of all tenants: of others, who holds what until when.")
@tenant_option
@click.option(
    "--state",
    type=click.Choice(_STATES, case_sensitive=False),
    help="Jobs in this state; an ended one needs no -a.",
)
@output_option
@with_client
async def jobs(
    client: AsyncClient,
    show_ended: bool,
    user: str,
    all_tenants: bool,
    tenant: str,
    state: str | None,
    output: str,
) -> None:
    """List your tenant's jobs (as admin or operator everybody's), newest first; -o wide has a line for each task and
    card."""
    from gpushare.cli.output import print_json_list
    from gpushare.cli.table import print_table
    from gpushare.client.aio import ALL_TENANTS

    if all_tenants and tenant not in ("", "-"):
        raise click.UsageError("-A is for all tenants, --tenant for one")
    is_wide = all_tenants or bool(tenant)
    asked = f"tenants/{tenant}" if tenant else ALL_TENANTS
    listing = client.list_jobs(
        parent=asked if is_wide else await _within_reach(client),
        user=user,
        show_ended=show_ended or state in _ENDED,
        state=f"JOB_STATE_{state or 'UNSPECIFIED'}",
    )
    found = [job async for job in listing if is_wide or not job.foreign]
    own_tenant = client.settings.tenant
    if output == JSON:
        print_json_list("jobs", found)
    elif output == WIDE:
        print_table(_WIDE_COLUMNS, [row for job in found for row in _wide_rows(job, own_tenant)])
    else:
        print_table(_COLUMNS, [_row(job, own_tenant) for job in found])


async def _within_reach(client: AsyncClient) -> str:
    """Where to look for the jobs that the caller has to do with, which may be fewer than they see."""
    from gpushare.client.aio import ALL_TENANTS

    who = await client.who_am_i()
    return f"tenants/{who.tenant}" if who.role in ("user", "viewer") else ALL_TENANTS


@click.command()
@output_option
@click.argument("job", metavar="JOB")
@with_client
async def job(client: AsyncClient, job: str, output: str) -> None:
    """Everything about one job; of an array, its children."""
    from gpushare.cli.output import print_json, print_json_list
    from gpushare.cli.refs import find
    from gpushare.cli.table import print_table

    found = await find(client, job)
    own_tenant = client.settings.tenant
    if found.array_id:
        if output == JSON:
            print_json_list("jobs", found.jobs)
        elif output == WIDE:
            print_table(_WIDE_COLUMNS, [row for each in found.jobs for row in _wide_rows(each, own_tenant)])
        else:
            print_table(_COLUMNS, [_row(each, own_tenant) for each in found.jobs])
        return
    # A job that was found by its name comes from a listing, which leaves out script and environment.
    whole = await client.get_job(found.jobs[0].name)
    if output == JSON:
        print_json(whole)
    else:
        _print_job(whole, own_tenant, wide=output == WIDE)


@click.command()
@output_option
@click.argument("job", metavar="JOB")
@with_client
async def explain(client: AsyncClient, job: str, output: str) -> None:
    """Why a job waits, what it waits for, and what would start it now."""
    from gpushare.cli.output import print_json, print_json_list
    from gpushare.cli.refs import find

    found = await find(client, job)
    explanations = [await client.explain_job(name) for name in found.names]
    if output == JSON and found.array_id:
        print_json_list("explanations", explanations)
    elif output == JSON:
        print_json(explanations[0])
    else:
        for position, explanation in enumerate(explanations):
            if position:
                print()
            _print_explanation(explanation, wide=output == WIDE)


@click.command()
@click.option("--user", metavar="U", callback=not_empty, help="All jobs of this user, in place of JOB...")
@tenant_option
@click.option(
    "--state",
    type=click.Choice(_CANCELLABLE, case_sensitive=False),
    help="With --user: only those that are listed in this state.",
)
@output_option
@click.argument("jobs", metavar="JOB...", nargs=-1)
def cancel(jobs: tuple[str, ...], user: str | None, tenant: str, state: str | None, output: str) -> int | None:
    """Stop jobs: SIGTERM, then SIGKILL after the job's grace. A job that has ended keeps its end.

    With --user those of somebody of your tenant; with --tenant T of that one, with --tenant - of all.
    """
    if bool(jobs) is (user is not None):
        raise click.UsageError("give either JOB... or --user, which means all jobs of a user")
    if user is None and (state or tenant):
        raise click.UsageError("--state and --tenant go with --user")

    async def work(client: AsyncClient) -> None:
        from gpushare.cli.follow import cancel_each
        from gpushare.cli.output import print_json_list

        missing: NotFoundError | None = None
        if user is None:
            names, missing = await _names_of(client, jobs)
        else:
            names = await _names_of_user(client, user, tenant, state)
        cancelled, failed = await cancel_each(client, names)
        failed = failed or missing
        if output == JSON:
            print_json_list("jobs", cancelled)
        elif cancelled:
            print_ends(cancelled, client.settings.tenant, wide=output == WIDE)
        elif failed is None:
            print(f"note: {user} has no such job to cancel", file=sys.stderr)
        if failed is not None:
            raise failed

    return run_with_client(work)


async def _names_of(client: AsyncClient, jobs: Iterable[str]) -> tuple[list[str], NotFoundError | None]:
    """What the references mean, each once; and the first that means nothing: it keeps nobody else running, and is said
    at the end."""
    from gpushare.cli.refs import find_all
    from gpushare.errors import NotFoundError

    names: dict[str, None] = {}
    missing: NotFoundError | None = None
    for each in jobs:
        try:
            names.update(dict.fromkeys(job.name for job in await find_all(client, [each])))
        except NotFoundError as err:
            missing = missing or err
    return list(names), missing


async def _names_of_user(client: AsyncClient, user: str, tenant: str, state: str | None) -> list[str]:
    """Those of the user's jobs that can be cancelled; newest first, so that hardly any starts in the place of one that
    was stopped before it. Two people of two tenants may have one name."""
    from gpushare.cli.output import job_state

    tenant = tenant or client.settings.tenant
    if not tenant:
        raise click.UsageError("say in which tenant: --tenant T, or --tenant - for all")
    listing = client.list_jobs(
        parent=f"tenants/{tenant}",
        user=user,
        state=f"JOB_STATE_{state or 'UNSPECIFIED'}",
    )
    return [job.name async for job in listing if not job.foreign and job_state(job) in _CANCELLABLE]


def print_ends(jobs: Sequence[Job], own_tenant: str, *, wide: bool) -> None:
    """One line a job: its state, code and reason."""
    from gpushare.cli.output import job_id, job_state
    from gpushare.cli.table import print_table

    columns = ["JOB", "STATE", "EXIT", "REASON"] + (["DETAIL"] if wide else [])
    rows = [
        [job_id(job, own_tenant), job_state(job), _exit_text(job), job.reason] + ([job.detail] if wide else [])
        for job in jobs
    ]
    print_table(columns, rows)


def _row(job: Job, own_tenant: str) -> tuple[object, ...]:
    from gpushare.cli.output import job_id, job_state, ran_text, request_text

    nodes = sorted({task.node for task in job.tasks if task.node})
    return (
        job_id(job, own_tenant),
        job.spec.name,
        job.tenant,
        job.created_by.user,
        job_state(job),
        request_text(job.spec.resources, job.spec.tasks),
        ran_text(job),
        ",".join(nodes),
        _why(job),
    )


def _wide_rows(job: Job, own_tenant: str) -> Iterable[tuple[object, ...]]:
    """One row a task and card; one for a job that has none."""
    from gpushare.cli.output import fence, job_id, job_state, ran_text, time_text

    first = (job_id(job, own_tenant), job.spec.name, job.tenant, job.created_by.user, job_state(job))
    last = (
        _exit_text(job),
        time_text(job, "create_time"),
        ran_text(job),
        _why(job),
    )
    if not job.tasks:
        yield (*first, "", "", "", "", "", "", "", *last)
    for task in job.tasks:
        for uuid in task.gpu_uuids or [""]:
            slice_ = (task.gpu_milli, task.gpu_memory_mib) if uuid else ("", "")
            yield (*first, task.task_index, task.node, uuid, *slice_, task.tier, fence(task.enforcement), *last)


def _why(job: Job) -> str:
    return job.reason or job.wait.reason


def _exit_text(job: Job) -> str:
    """Nothing for a job of which no process ever ran, whatever `wait` returns for it."""
    ran = any(task.HasField("start_time") or task.HasField("exit_code") for task in job.tasks)
    return str(job.exit_code) if ran and job.HasField("exit_code") else ""


def _print_job(job: Job, own_tenant: str, *, wide: bool) -> None:
    from gpushare.cli import output as o
    from gpushare.cli.table import print_fields, print_table
    from gpushare.client.messages import Qos

    cancelled_by = f"{job.cancelled_by.user} ({job.cancelled_by.role})" if job.HasField("cancelled_by") else ""
    print_fields(
        [
            ("job", o.job_id(job, own_tenant)),
            ("name", job.spec.name),
            ("tenant", job.tenant),
            ("user", job.created_by.user),
            ("state", o.job_state(job)),
            ("reason", o.reason_sentence(job.reason, job.detail)),
            ("waits", o.reason_sentence(job.wait.reason, job.wait.detail)),
            ("exit code", _exit_text(job)),
            ("signal", job.signal if job.HasField("signal") else ""),
            ("cancelled by", cancelled_by),
            ("request", f"{max(job.spec.tasks, 1)} x {o.request_sentence(job.spec.resources)}"),
            ("starts with", f"{job.spec.min_tasks} tasks at least" if job.spec.min_tasks else ""),
            ("after", " ".join(_after_text(each) for each in job.spec.after)),
            ("qos", o.word(Qos, job.spec.qos).lower()),
            ("model", job.spec.resources.gpu_model),
            ("node labels", _pairs_text(job.spec.resources.node_labels)),
            ("command", _command_text(job)),
            ("directory", job.spec.working_directory),
            ("output", job.spec.output_path),
            ("errors", job.spec.error_path),
            ("labels", _pairs_text(job.spec.labels)),
            ("created", o.time_text(job, "create_time")),
            ("started", o.time_text(job, "start_time")),
            ("ended", o.time_text(job, "end_time")),
            ("ran", o.ran_text(job)),
            ("expected start", o.time_text(job, "expected_start_time")),
            ("time limit", _limit_text(job)),
            ("ends by", o.time_text(job, "expected_end_time")),
            ("made way", _preemption_text(job)),
            ("retries", f"{job.retries} own, {job.infra_retries} free" if job.retries or job.infra_retries else ""),
            ("queued again", _requeues_text(job)),
            ("card-seconds", o.charge_seconds(job.charge_milli_seconds)),
            *(_wide_fields(job) if wide else []),
        ]
    )
    if job.tasks:
        print()
        print_table(_TASK_COLUMNS, [row for task in job.tasks for row in _task_rows(task)])


def _limit_text(job: Job) -> str:
    """ "8h (2h when submitted)"."""
    from gpushare.quantity import format_duration_ms

    if not job.spec.HasField("max_run_duration"):
        return ""
    limit = format_duration_ms(job.spec.max_run_duration.ToMilliseconds())
    if not job.HasField("submitted_run_duration"):
        return limit
    return f"{limit} ({format_duration_ms(job.submitted_run_duration.ToMilliseconds())} when submitted)"


def _requeues_text(job: Job) -> str:
    if not job.requeues:
        return ""
    return "once" if job.requeues == 1 else f"{job.requeues} times"


def _preemption_text(job: Job) -> str:
    from gpushare.cli.output import short_name

    if not job.preemptions:
        return ""
    times = "once" if job.preemptions == 1 else f"{job.preemptions} times"
    return f"{times}, last for {short_name(job.preempted_for)}" if job.preempted_for else times


def _after_text(after: Dependency) -> str:
    """ "afterok:vision/42"."""
    from gpushare.cli.output import short_name, word
    from gpushare.client.messages import DependencyKind

    return f"{word(DependencyKind, after.kind).lower()}:{short_name(after.job)}"


def _pairs_text(pairs: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(pairs.items()))


def _wide_fields(job: Job) -> list[tuple[str, object]]:
    from gpushare.cli.output import word
    from gpushare.client.messages import OnTaskFailure, Preemption, Topology
    from gpushare.quantity import format_duration_ms

    spec = job.spec
    priority: Any = spec.priority if spec.HasField("priority") else ""
    environment = sorted({*spec.env, *spec.captured_env})
    start_within = format_duration_ms(spec.start_within.ToMilliseconds()) if spec.HasField("start_within") else ""
    return [
        ("resource name", job.name),
        ("priority", priority),
        ("when preempted", word(Preemption, spec.preemption).lower()),
        ("when a task fails", word(OnTaskFailure, spec.on_task_failure).lower() if spec.tasks > 1 else ""),
        ("topology", word(Topology, spec.topology).lower() if spec.tasks > 1 else ""),
        ("at once", spec.array_max_running or ""),
        ("early signal", _early_signal_text(job)),
        ("queued again on", " ".join(map(str, spec.requeue_exit_codes))),
        ("start within", start_within),
        ("variables", " ".join(environment)),
        ("containment", " ".join(sorted({task.containment for task in job.tasks if task.containment}))),
    ]


def _early_signal_text(job: Job) -> str:
    """ "USR1@10m:all", as it was asked for."""
    from gpushare.cli.output import word
    from gpushare.client.messages import SignalTarget
    from gpushare.quantity import format_duration_ms

    if not job.spec.HasField("early_signal"):
        return ""
    asked = job.spec.early_signal
    before = format_duration_ms(asked.before.ToMilliseconds())
    return f"{asked.signal}@{before}:{word(SignalTarget, asked.target).lower()}"


def _command_text(job: Job) -> str:
    import shlex

    if job.redacted:
        return "(not shown to you)"
    words = [shlex.quote(word) for word in job.spec.argv]
    if job.spec.script:
        words.insert(0, f"(script of {len(job.spec.script)} bytes)")
    return " ".join(words)


def _task_rows(task: TaskAttempt) -> Iterable[tuple[object, ...]]:
    from gpushare.cli import output as o
    from gpushare.client.messages import AttemptState

    for place, uuid in enumerate(task.gpu_uuids or [""]):
        # Measured over all cards of the task, so it stands once.
        used = f"{task.used_mib}MiB" if place == 0 and task.HasField("used_mib") else ""
        sm = f"{task.sm_percent}%" if place == 0 and task.HasField("sm_percent") else ""
        yield (
            task.task_index,
            task.number,
            o.word(AttemptState, task.state),
            task.node,
            uuid,
            task.gpu_milli if uuid else "",
            task.gpu_memory_mib if uuid else "",
            used,
            sm,
            task.tier,
            o.fence(task.enforcement),
            task.exit_code if task.HasField("exit_code") else "",
            o.reason_sentence(task.reason, task.detail),
        )


def _print_explanation(explanation: JobExplanation, *, wide: bool) -> None:
    from gpushare.cli import output as o
    from gpushare.cli.table import print_fields, print_table

    wait = explanation.wait
    # When the jobs that it waits for have ended: said only where no better time is known.
    is_expected = explanation.HasField("expected_start_time")
    print_fields(
        [
            ("job", o.short_name(explanation.name)),
            ("state", o.job_state(explanation)),
            ("waits", o.reason_sentence(wait.reason, wait.detail) if wait.reason else "it does not wait"),
            ("held by", explanation.stage),
            ("goes after", _ahead_text(explanation)),
            ("room kept for", o.short_name(explanation.claimant)),
            ("making way", _victims_text(explanation)),
            ("waits for jobs", " ".join(o.short_name(name) for name in explanation.blocking_jobs)),
            ("expected start", _expected_text(explanation)),
            ("room by", "" if is_expected else o.time_text(explanation, "earliest_start_time")),
            ("to start it now", explanation.suggestion),
            ("what to do", o.what_to_do(wait.reason)),
        ]
    )
    if explanation.counterfactuals:
        print()
        print_table(("IT WOULD START", "WITH", "THAT IS"), [_change_row(each) for each in explanation.counterfactuals])
    if explanation.filters:
        print()
        columns = ("CARDS", "REFUSED BY", "BECAUSE", "NODES")
        rows = []
        for each in explanation.filters:
            nodes = list(each.nodes)
            more = "" if wide or len(nodes) <= 3 else f" and {len(nodes) - 3} more"
            rows.append((each.gpus, each.reason, each.detail, ",".join(nodes if wide else nodes[:3]) + more))
        print_table(columns, rows)


def _expected_text(explanation: JobExplanation) -> str:
    from gpushare.cli.inert import inert
    from gpushare.cli.output import time_text

    because = inert(explanation.unknown_because)
    return time_text(explanation, "expected_start_time") or (f"not known: {because}" if because else "")


def _change_row(each: Counterfactual) -> tuple[object, ...]:
    from gpushare.cli.output import now_ms, time_text

    now = each.start_time.ToMilliseconds() <= now_ms()
    return ("now" if now else time_text(each, "start_time"), each.flag, each.change)


def _ahead_text(explanation: JobExplanation) -> str:
    from gpushare.cli.output import short_name

    if not explanation.ahead_count:
        return ""
    named = [short_name(name) for name in explanation.ahead_jobs]
    more = explanation.ahead_count - len(named)
    return " ".join(named) + (f" and {more} more" if named and more else f"{more} jobs" if more else "")


def _victims_text(explanation: JobExplanation) -> str:
    """Jobs that make way for it; they may all be others' that the reader may not see."""
    from gpushare.cli.output import short_name, time_text

    if not explanation.HasField("hold_time"):
        return ""
    victims = " ".join(short_name(name) for name in explanation.victims) or "jobs of other tenants"
    return f"{victims} since {time_text(explanation, 'hold_time')}"
