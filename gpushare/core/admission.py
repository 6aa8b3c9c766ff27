"""Is this a job that can be admitted? Raw input in, a `JobSpec` or a Rejection out.

Pure. Every check is in accepting form (what passes is named), so that a value nobody thought of is refused. Nothing
here looks at free capacity: only a request that no registered node could ever hold is refused for its size.
"""

from __future__ import annotations

from collections.abc import Callable

from gpushare import names
from gpushare.core.capacity import never_fits
from gpushare.core.commands import CoreSettings, RawJob, RawResources, Rejection, SubmitJobs
from gpushare.core.due import Readiness, readiness
from gpushare.core.kinds import (
    Enforcement,
    OnDisconnect,
    OnTaskFailure,
    PreemptionMode,
    Qos,
    Role,
    Topology,
    VisibleDevices,
)
from gpushare.core.model import DEFAULT_GRACE_MS, WHOLE_CARD_MILLI, Dependency, JobSpec, Principal, TaskRequest, Tenant
from gpushare.core.run_limits import RunLimits, above_cap, check_early_signal, check_requeue_codes, run_limits
from gpushare.core.state import ClusterState
from gpushare.outputpath import check_output_path
from gpushare.quantity import format_duration_ms
from gpushare.reasons import Reason

_INT32_MAX = 2**31 - 1
# Models that one request may name, and jobs that one job may wait for.
_MODELS_MAX = 16
_AFTER_MAX = 64
# Of the lease, what a grace must leave for renewals.
_LEASE_SPARE_MS = 1000


class Refused(Exception):
    def __init__(self, rejection: Rejection) -> None:
        super().__init__(rejection.detail)
        self.rejection = rejection


def _refuse(field: str, detail: str, reason: Reason = Reason.INVALID_FIELD) -> Refused:
    return Refused(Rejection(reason, f"{field}: {detail}", field=field))


def check_jobs(
    state: ClusterState, command: SubmitJobs, who: Principal, settings: CoreSettings
) -> list[JobSpec] | Rejection:
    """Check all jobs of a submission against the caps, the tenant and the registered nodes; the first fault wins."""
    tenant = state.tenant(command.tenant)
    if tenant is None:
        return Rejection(Reason.NOT_FOUND, f"tenant {names.shown(command.tenant)} does not exist", field="parent")
    if not 0 < len(command.jobs) <= settings.batch_max:
        return Rejection(
            Reason.INVALID_FIELD, f"a batch holds 1 to {settings.batch_max} jobs, not {len(command.jobs)}", field="jobs"
        )
    try:
        limits = run_limits(state.tenants, tenant.name)
        specs = [check_job(raw, tenant, limits, who, settings) for raw in command.jobs]
        if not command.validate_only:
            _check_queue(tenant, command.jobs)
        for dependency in dict.fromkeys(d for s in specs for d in s.after):
            _check_dependency(state, tenant, dependency)
        for spec in dict.fromkeys((s.resources, s.least_tasks, s.topology) for s in specs):
            why = never_fits(state, *spec)
            if why:
                raise _refuse("resources", why, Reason.NEVER_FITS)
    except Refused as refused:
        return refused.rejection
    except names.TextError as err:
        return Rejection(Reason.INVALID_FIELD, str(err), field=err.field)
    return specs


def _check_queue(tenant: Tenant, jobs: tuple[RawJob, ...]) -> None:
    new = sum(max(1, len(raw.array_indexes)) for raw in jobs)
    cap = tenant.settings.max_queued_jobs
    if tenant.queued_jobs + new > cap:
        raise Refused(
            Rejection(
                Reason.QUEUE_FULL,
                f"tenant {tenant.name} may have {cap} jobs queued; {tenant.queued_jobs} are, and this adds {new}: "
                "wait until some have started, or ask an admin for a higher cap",
                metadata={
                    "cap": str(cap),
                    "queued": str(tenant.queued_jobs),
                    "new": str(new),
                    "retry_after_s": "10",
                },
            )
        )


def _check_dependency(state: ClusterState, tenant: Tenant, dependency: Dependency) -> None:
    """It names a job or an array of the same tenant, and can still hold."""
    key = dependency.job
    if key.partition("/")[0] != tenant.name or (key not in state.jobs and key not in state.arrays):
        raise Refused(
            Rejection(
                Reason.NOT_FOUND,
                f"after: there is no job or array {names.shown(key)} in tenant {tenant.name} to wait for (it may have "
                "ended long ago)",
                field="after",
            )
        )
    if readiness(state, dependency) is Readiness.NEVER:
        raise _refuse(
            "after", f"job {key} has ended without success, so this could never start", Reason.DEPENDENCY_FAILED
        )


def check_job(raw: RawJob, tenant: Tenant, limits: RunLimits, who: Principal, settings: CoreSettings) -> JobSpec:
    """One job's shape; `limits` are those of `tenant`. Raises Refused or TextError."""
    if raw.name is not None:
        names.check_job_name(raw.name, "name")
    if raw.display_name:
        names.check_display_name(raw.display_name, "display_name", settings.display_name_max_chars)
    _check_command(raw, settings)
    env, captured = _check_env(raw, settings)
    tasks = _in_range("tasks", raw.tasks or 1, 1, settings.tasks_max)
    _check_array(raw.array_indexes, settings)
    grace_ms = DEFAULT_GRACE_MS if raw.grace_ms is None else raw.grace_ms
    _in_range("grace_duration", grace_ms, 0, settings.grace_ms_max, format_duration_ms)
    on_disconnect = raw.on_disconnect or OnDisconnect.KEEP
    if on_disconnect is OnDisconnect.STOP_AND_REQUEUE and grace_ms > settings.lease_ttl_ms - _LEASE_SPARE_MS:
        raise _refuse(
            "grace_duration",
            f"stop_and_requeue needs a grace at least 1 s below the lease of {settings.lease_ttl_ms // 1000} s, so "
            "that the job is dead when it ends and has time to hear of its renewals",
        )
    max_run_ms = _check_run_limit(raw.max_run_ms, limits, who, settings)
    return JobSpec(
        argv=raw.argv,
        script=raw.script,
        resources=check_resources(raw.resources, tenant.settings.default_request, settings),
        working_directory=_check_directory(raw.working_directory),
        name=raw.name or "",
        display_name=raw.display_name,
        env=env,
        captured_env=captured,
        tasks=tasks,
        max_run_ms=max_run_ms,
        priority=_check_priority(raw.priority, tenant, who, settings),
        max_retries=_in_range("max_retries", raw.max_retries, 0, settings.retries_max),
        on_disconnect=on_disconnect,
        grace_ms=grace_ms,
        labels=_check_labels(raw.labels, "labels", settings),
        pty=raw.pty,
        unix_user=who.unix_user,
        min_tasks=_check_min_tasks(raw.min_tasks, tasks),
        qos=raw.qos or Qos.BURST,
        preemption=raw.preemption or PreemptionMode.REQUEUE,
        on_task_failure=_check_on_task_failure(raw, tasks),
        topology=_check_topology(raw),
        after=_check_after(raw.after),
        array_max_running=_check_array_cap(raw),
        start_within_ms=_check_start_within(raw.start_within_ms, settings),
        output_path=_check_output_path(raw.output_path, "output_path", raw),
        error_path=_check_output_path(raw.error_path, "error_path", raw),
        visible_devices=raw.visible_devices or VisibleDevices.UUID,
        early_signal=check_early_signal(raw.early_signal, max_run_ms),
        requeue_exit_codes=check_requeue_codes(raw.requeue_exit_codes),
        stdin=raw.stdin,
        window_rows=_in_range("window.rows", raw.window_rows, 0, names.WINDOW_MAX),
        window_columns=_in_range("window.columns", raw.window_columns, 0, names.WINDOW_MAX),
    )


def _check_min_tasks(min_tasks: int, tasks: int) -> int:
    """0 for all of them, so that equal jobs are equal."""
    if not min_tasks:
        return 0
    if tasks == 1:
        raise _refuse("min_tasks", f"is {min_tasks}, and the job has one task; give tasks, too")
    return _in_range("min_tasks", min_tasks, 1, tasks) % tasks


def _check_on_task_failure(raw: RawJob, tasks: int) -> OnTaskFailure:
    if raw.on_task_failure is OnTaskFailure.CONTINUE and tasks == 1:
        raise _refuse("on_task_failure", "is continue, and the job has one task; give tasks, too")
    return raw.on_task_failure or OnTaskFailure.STOP


def _check_topology(raw: RawJob) -> Topology:
    if raw.topology is Topology.DOMAIN and raw.resources.gpus == 0:
        raise _refuse("topology", "is domain, and a CPU job has no cards; give node, or gpus")
    return raw.topology or Topology.ANY


def _check_after(after: tuple[Dependency, ...]) -> tuple[Dependency, ...]:
    """Sorted, so that equal jobs are equal."""
    if not after:
        return ()
    if len(after) > _AFTER_MAX:
        raise _refuse("after", f"names {len(after)} jobs; accepted: {_AFTER_MAX} (give an array's id for its children)")
    if len({dependency.job for dependency in after}) != len(after):
        raise _refuse("after", "names a job twice")
    return tuple(sorted(after, key=lambda dependency: dependency.job))


def _check_array_cap(raw: RawJob) -> int:
    if raw.array_max_running and not raw.array_indexes:
        raise _refuse("array_max_running", f"is {raw.array_max_running}, and the job is no array")
    return _in_range("array_max_running", raw.array_max_running, 0, _INT32_MAX)


def _check_start_within(start_within_ms: int | None, settings: CoreSettings) -> int:
    if start_within_ms is None:
        return 0
    return _in_range("start_within", start_within_ms, 1, settings.max_run_ms_max, format_duration_ms)


def _check_output_path(pattern: str, field: str, raw: RawJob) -> str:
    if not pattern:
        return ""
    if raw.pty:
        raise _refuse(field, "is a file, and pty asks for a terminal; give one of them")
    return check_output_path(pattern, field, is_array=bool(raw.array_indexes), has_name=bool(raw.name))


def dropped_env(raw: RawJob) -> tuple[str, ...]:
    """Captured names that are left out because only gpushare sets them."""
    return tuple(sorted(filter(names.is_reserved_env, raw.captured_env)))


def _in_range(field: str, value: int, low: int, high: int, shown: Callable[[int], str] = str) -> int:
    if not low <= value <= high:
        raise _refuse(field, f"is {shown(value)}; accepted: {shown(low)} to {shown(high)}")
    return value


def _check_command(raw: RawJob, settings: CoreSettings) -> None:
    if not raw.argv and not raw.script:
        raise _refuse("argv", "is empty; give a command, or a script")
    size = len(raw.script)
    for arg in raw.argv:
        names.check_text(arg, "argv", max_bytes=settings.argv_max_bytes, controls=True)
        size += len(arg.encode()) + 1
    if size > settings.argv_max_bytes:
        raise _refuse("argv", f"command and script have {size} bytes; accepted: {settings.argv_max_bytes} together")
    if not raw.script and not raw.argv[0]:
        raise _refuse("argv", "the command's name is empty")


def _check_env(raw: RawJob, settings: CoreSettings) -> tuple[dict[str, str], dict[str, str]]:
    if not raw.env and not raw.captured_env:
        return raw.env, raw.captured_env
    captured = {k: v for k, v in raw.captured_env.items() if not names.is_reserved_env(k)}
    merged = {**captured, **raw.env}
    if len(merged) > settings.env_max_vars:
        raise _refuse("env", f"has {len(merged)} variables; accepted: {settings.env_max_vars}")
    for key in raw.env:
        if names.is_reserved_env(key):
            why = f"{key} is set by gpushare itself; leave it out"
            if key == "CUDA_VISIBLE_DEVICES":
                why += ": the job sees its own cards alone, and counts them from 0 (cuda:0)"
            raise _refuse("env", why, Reason.RESERVED_ENV)
    for key, value in merged.items():
        names.check_env_name(key, "env")
        names.check_text(value, f"env {key}", max_bytes=settings.env_max_bytes, controls=True)
    size = sum(len(k) + len(v.encode()) + 2 for k, v in merged.items())
    if size > settings.env_max_bytes:
        raise _refuse("env", f"has {size} bytes; accepted: {settings.env_max_bytes}")
    return raw.env, captured


def _check_array(indexes: tuple[int, ...], settings: CoreSettings) -> None:
    if len(indexes) > settings.array_max:
        raise _refuse(
            "array_indexes",
            f"has {len(indexes)} indexes; accepted: {settings.array_max} (split it into several arrays)",
            Reason.ARRAY_TOO_LARGE,
        )
    if len(set(indexes)) != len(indexes):
        raise _refuse("array_indexes", "has an index twice")
    for index in indexes:
        _in_range("array_indexes", index, 0, _INT32_MAX)


def _check_directory(path: str) -> str:
    names.check_text(path, "working_directory", max_bytes=4096)
    if not path.startswith("/"):
        raise _refuse("working_directory", f"{names.shown(path)} is not absolute; give a path that begins with /")
    return path


def _check_run_limit(max_run_ms: int | None, limits: RunLimits, who: Principal, settings: CoreSettings) -> int:
    if max_run_ms is None:
        return limits.unasked_ms
    field = "max_run_duration"
    _in_range(field, max_run_ms, 1, settings.max_run_ms_max, format_duration_ms)
    why = above_cap(max_run_ms, limits, who)
    if why:
        raise _refuse(field, why, Reason.RUN_LIMIT)
    return max_run_ms


def _check_priority(priority: int | None, tenant: Tenant, who: Principal, settings: CoreSettings) -> int:
    if priority is None:
        return 0
    _in_range("priority", priority, -settings.priority_max, settings.priority_max)
    if priority > tenant.settings.max_priority and who.role is not Role.ADMIN:
        raise _refuse(
            "priority",
            f"{priority} is above {tenant.settings.max_priority}, the highest for users of tenant {tenant.name}",
            Reason.PRIORITY_ABOVE_ROLE,
        )
    return priority


def _check_labels(labels: dict[str, str], field: str, settings: CoreSettings) -> dict[str, str]:
    if len(labels) > settings.labels_max:
        raise _refuse(field, f"has {len(labels)} labels; accepted: {settings.labels_max}")
    for key, value in labels.items():
        names.check_text(key, field, max_bytes=settings.label_max_chars)
        names.check_text(value, f"{field} {names.shown(key)}", max_bytes=settings.label_max_chars)
        if not key:
            raise _refuse(field, "has an empty name")
    return labels


def check_resources(raw: RawResources, default: TaskRequest | None, settings: CoreSettings) -> TaskRequest:
    """A request's shape; all GPU fields unset takes `default`. Raises Refused or TextError."""
    gpus, milli, mib = raw.gpus, raw.gpu_milli, raw.gpu_memory_mib
    if gpus is None and milli is None and mib is None and default is not None:
        gpus, milli, mib = (default.gpus if not default.is_share else None), default.gpu_milli, default.gpu_memory_mib
    if gpus is not None and (milli is not None or mib is not None):
        raise _refuse(
            "resources.gpus",
            "whole GPUs exclude gpu_milli and gpu_memory_mib, which ask for a share of one; a job with several slices "
            "of several GPUs is several tasks, each with a share of one GPU",
        )
    if gpus is not None:
        _in_range("resources.gpus", gpus, 0, settings.gpus_per_node_max)
    if milli is not None:
        _in_range("resources.gpu_milli", milli, 1, WHOLE_CARD_MILLI)
    if mib is not None:
        _in_range("resources.gpu_memory_mib", mib, 1, _INT32_MAX)
    if raw.cpu_milli is not None:
        _in_range("resources.cpu_milli", raw.cpu_milli, 1, _INT32_MAX)
    if raw.memory_mib is not None:
        _in_range("resources.memory_mib", raw.memory_mib, 1, _INT32_MAX)
    if raw.min_gpu_memory_mib is not None:
        _in_range("resources.min_gpu_memory_mib", raw.min_gpu_memory_mib, 1, _INT32_MAX)
    labels = _check_labels(raw.node_labels, "resources.node_labels", settings)
    return TaskRequest(
        gpus=gpus or 0,
        gpu_milli=milli,
        gpu_memory_mib=mib,
        cpu_milli=raw.cpu_milli,
        memory_mib=raw.memory_mib,
        gpu_model=check_models(raw.gpu_model, "resources.gpu_model", settings),
        min_gpu_memory_mib=raw.min_gpu_memory_mib or 0,
        node_labels=tuple(sorted(labels.items())),
        min_enforcement=Enforcement(_in_range("resources.min_enforcement", raw.min_enforcement, 0, 3)),
    )


def check_models(text: str, field: str, settings: CoreSettings) -> str:
    """One model or several joined by "|", in sorted order without repeats; "" for any. Raises Refused or TextError."""
    if not text:
        return ""
    models = text.split("|")
    if len(models) > _MODELS_MAX:
        raise _refuse(field, f"names {len(models)} models; accepted: {_MODELS_MAX}")
    for model in models:
        names.check_text(model, field, max_bytes=settings.label_max_chars)
        if not model:
            raise _refuse(field, f"{names.shown(text)} has an empty model; accepted: one model, or several joined by |")
    return "|".join(sorted(set(models)))
