"""What a person writes about a job -> the JobSpec of the API.

Imports `gpushare.quantity`, `gpushare.names`, `gpushare.outputpath` and the generated messages. Invariants: texts go
through the one strict parser, so that a share is never a float; what is unset stays unset, so that the tenant's and the
node's defaults hold; limits are the scheduler's to test, only what cannot be written into a message is refused here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from gpushare.client.messages import (
    Dependency,
    DependencyKind,
    EarlySignal,
    Enforcement,
    JobSpec,
    OnDisconnect,
    OnTaskFailure,
    Preemption,
    Qos,
    Resources,
    SignalTarget,
    Topology,
    VisibleDevices,
    WindowSize,
)
from gpushare.names import TextError
from gpushare.outputpath import check_output_path
from gpushare.quantity import (
    MAX_INT32,
    parse_array,
    parse_cpu_milli,
    parse_duration_ms,
    parse_gpus,
    parse_int,
    parse_memory_mib,
)

# The scheduler's own cap is a setting and usually lower; this one only keeps a request from outgrowing a message.
MAX_ARRAY_INDEXES = 100_000
_INT64_MAX = (1 << 63) - 1

_Choice = TypeVar("_Choice")

FENCES: dict[str, Enforcement] = {
    "soft": Enforcement.ENFORCEMENT_SOFT,
    "server": Enforcement.ENFORCEMENT_SERVER,
    "hard": Enforcement.ENFORCEMENT_HARD,
}
ON_DISCONNECT: dict[str, OnDisconnect] = {
    "keep": OnDisconnect.ON_DISCONNECT_KEEP,
    "stop-and-requeue": OnDisconnect.ON_DISCONNECT_STOP_AND_REQUEUE,
}
QOS: dict[str, Qos] = {"guaranteed": Qos.QOS_GUARANTEED, "burst": Qos.QOS_BURST}
PREEMPTIONS: dict[str, Preemption] = {
    "suspend": Preemption.PREEMPTION_SUSPEND,
    "requeue": Preemption.PREEMPTION_REQUEUE,
    "cancel": Preemption.PREEMPTION_CANCEL,
}
ON_TASK_FAILURE: dict[str, OnTaskFailure] = {
    "stop": OnTaskFailure.ON_TASK_FAILURE_STOP,
    "continue": OnTaskFailure.ON_TASK_FAILURE_CONTINUE,
}
TOPOLOGIES: dict[str, Topology] = {
    "any": Topology.TOPOLOGY_ANY,
    "node": Topology.TOPOLOGY_NODE,
    "domain": Topology.TOPOLOGY_DOMAIN,
}
VISIBLE_DEVICES: dict[str, VisibleDevices] = {
    "uuid": VisibleDevices.VISIBLE_DEVICES_UUID,
    "index": VisibleDevices.VISIBLE_DEVICES_INDEX,
}
SIGNAL_TARGETS: dict[str, SignalTarget] = {
    "leader": SignalTarget.SIGNAL_TARGET_LEADER,
    "all": SignalTarget.SIGNAL_TARGET_ALL,
}
AFTER: dict[str, DependencyKind] = {
    "after": DependencyKind.DEPENDENCY_KIND_AFTER,
    "afterany": DependencyKind.DEPENDENCY_KIND_AFTERANY,
    "afterok": DependencyKind.DEPENDENCY_KIND_AFTEROK,
}


def job_spec(
    argv: Sequence[str],
    *,
    working_directory: str,
    script: bytes = b"",
    name: str | None = None,
    env: Mapping[str, str] | None = None,
    captured_env: Mapping[str, str] | None = None,
    gpus: str | int | None = None,
    gpu_memory: str | None = None,
    model: str = "",
    cpus: str | int | None = None,
    host_memory: str | None = None,
    tasks: str | int | None = None,
    array: str | None = None,
    time: str | None = None,
    priority: str | int | None = None,
    max_retries: str | int | None = None,
    grace: str | None = None,
    fence: str | None = None,
    on_disconnect: str | None = None,
    labels: Mapping[str, str] | None = None,
    node_labels: Mapping[str, str] | None = None,
    pty: bool = False,
    stdin: bool = False,
    window: WindowSize | None = None,
    min_tasks: str | int | None = None,
    qos: str | None = None,
    preemption: str | None = None,
    on_task_failure: str | None = None,
    topology: str | None = None,
    after: Sequence[tuple[str, str]] = (),
    start_within: str | None = None,
    output: str | None = None,
    error: str | None = None,
    visible_devices: str | None = None,
    early_signal: str | None = None,
    requeue_exit_codes: Sequence[str] = (),
) -> JobSpec:
    """A JobSpec for `AsyncClient.create_job`.

    Quantities are the texts of the command line: `gpus` "0.25", "25%" or 2; `gpu_memory` and `host_memory` "12GiB";
    `cpus` "4" or "500m"; `time`, `grace` and `start_within` "2h"; `array` "0-99", or "0-99%8" for at most 8 at once;
    `model` one card model or several ("A100,H100"); `early_signal` "USR1@10m" or "USR1@10m:all"; `requeue_exit_codes`
    codes as texts ("85", "85,86"). `after` holds pairs of a kind ("after", "afterany", "afterok") and a job's resource
    name. `output` and `error` are files on the node, "logs/%j.out". `argv` holds the arguments alone where there is a
    `script`. Raises TextError with `field`.
    """
    spec = JobSpec(
        argv=[_utf8(argument, f"argv[{index}]") for index, argument in enumerate(argv)],
        script=script,
        name=None if name is None else _utf8(name, "name"),
        working_directory=_utf8(working_directory, "working_directory"),
        env=_checked_pairs(env, "env"),
        captured_env=_checked_pairs(captured_env, "captured_env"),
        resources=_resources(gpus, gpu_memory, model, cpus, host_memory, fence),
        labels=_checked_pairs(labels, "label"),
        pty=pty,
        stdin=stdin,
        window=window,
        tasks=_number(tasks, "tasks", 1),
        min_tasks=_number(min_tasks, "min_tasks", 1),
        priority=_number(priority, "priority", -_INT64_MAX, _INT64_MAX),
        max_retries=_number(max_retries, "max_retries"),
        on_disconnect=_choice(on_disconnect, "on_disconnect", ON_DISCONNECT),
        qos=_choice(qos, "qos", QOS),
        preemption=_choice(preemption, "preemption", PREEMPTIONS),
        on_task_failure=_choice(on_task_failure, "on_task_failure", ON_TASK_FAILURE),
        topology=_choice(topology, "topology", TOPOLOGIES),
        output_path=_output_path(output, "output", array, name, pty=pty),
        error_path=_output_path(error, "error", array, name, pty=pty),
        visible_devices=_choice(visible_devices, "visible_devices", VISIBLE_DEVICES),
        after=[Dependency(job=_utf8(job, "after"), kind=_choice(kind, "after", AFTER)) for kind, job in after],
    )
    spec.requeue_exit_codes.extend(_codes(requeue_exit_codes))
    if early_signal is not None:
        spec.early_signal.CopyFrom(_early_signal(early_signal))
    spec.resources.node_labels.update(_checked_pairs(node_labels, "node_label"))
    _set_array(spec, array)
    for text, field, duration in (
        (time, "time", spec.max_run_duration),
        (grace, "grace", spec.grace_duration),
        (start_within, "start_within", spec.start_within),
    ):
        if text is not None:
            duration.FromMilliseconds(parse_duration_ms(text, field))
    return spec


def _output_path(pattern: str | None, field: str, array: str | None, name: str | None, *, pty: bool) -> str | None:
    if pattern is None:
        return None
    if pty:
        raise TextError(field, pattern, "is a file, and --pty asks for a terminal", "one of the two")
    return check_output_path(_utf8(pattern, field), field, is_array=array is not None, has_name=name is not None)


def _set_array(spec: JobSpec, array: str | None) -> None:
    """ "0-99", or "0-99%8" for at most 8 at once."""
    if array is not None:
        indexes, percent, at_once = array.partition("%")
        spec.array_indexes.extend(parse_array(indexes, MAX_ARRAY_INDEXES))
        spec.array_max_running = parse_int(at_once, "array", minimum=1) if percent else 0


def _early_signal(text: str) -> EarlySignal:
    """ "USR1@10m", "SIGUSR1@10m:all"."""
    field, accepted = "signal", 'a signal, the time before the limit and who hears it ("USR1@10m", "USR1@10m:all")'
    signal, at, rest = _utf8(text, field).partition("@")
    before, colon, target = rest.partition(":")
    if not at or not signal:
        raise TextError(field, text, "does not say which signal comes when", accepted)
    if colon and target not in SIGNAL_TARGETS:
        raise TextError(field, text, "is for nobody that there is", ", ".join(SIGNAL_TARGETS))
    made = EarlySignal(signal=signal, target=SIGNAL_TARGETS[target or "leader"])
    made.before.FromMilliseconds(parse_duration_ms(before, field))
    return made


def _codes(texts: Sequence[str]) -> list[int]:
    field = "requeue_exit_code"
    return [parse_int(code, field, minimum=1, maximum=255) for text in texts for code in text.split(",")]


def request_of(gpus: str | int | None, gpu_memory: str | None, model: str = "") -> Resources:
    """The GPU part of a request alone; a tenant's default request is one too."""
    return _resources(gpus, gpu_memory, model, None, None, None)


def _resources(
    gpus: str | int | None,
    gpu_memory: str | None,
    model: str,
    cpus: str | int | None,
    host_memory: str | None,
    fence: str | None,
) -> Resources:
    resources = Resources(gpu_model=_models(model))
    if gpus is not None:
        amount = parse_gpus(str(gpus))
        if amount.gpu_milli:
            resources.gpu_milli = amount.gpu_milli
        else:
            resources.gpus = amount.gpus
    if gpu_memory is not None:
        resources.gpu_memory_mib = parse_memory_mib(gpu_memory, "gpu_memory")
    if cpus is not None:
        resources.cpu_milli = parse_cpu_milli(str(cpus), "cpus")
    if host_memory is not None:
        resources.memory_mib = parse_memory_mib(host_memory, "host_memory")
    enforcement = _choice(fence, "fence", FENCES)
    if enforcement is not None:
        resources.min_enforcement = enforcement
    return resources


def _models(text: str) -> str:
    """ "A100,H100" -> "A100|H100", as the API has it."""
    return "|".join(part.strip() for part in _utf8(text, "model").split(","))


def _choice(value: str | None, field: str, choices: Mapping[str, _Choice]) -> _Choice | None:
    if value is None:
        return None
    if value not in choices:
        raise TextError(field, value, "is not one of these", ", ".join(choices))
    return choices[value]


def _number(value: str | int | None, field: str, minimum: int = 0, maximum: int = MAX_INT32) -> int | None:
    return None if value is None else parse_int(str(value), field, minimum=minimum, maximum=maximum)


def _checked_pairs(pairs: Mapping[str, str] | None, field: str) -> dict[str, str]:
    return {_utf8(key, field): _utf8(value, f"{field}[{key}]") for key, value in (pairs or {}).items()}


def _utf8(value: str, field: str) -> str:
    """Bytes that are no UTF-8 reach Python as lone surrogates, which no message can carry."""
    try:
        value.encode()
    except UnicodeEncodeError as err:
        raise TextError(field, value, "is not valid UTF-8", "UTF-8 text") from err
    return value
