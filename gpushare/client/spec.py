"""What a person writes about a job -> the JobSpec of the API.

Imports `gpushare.quantity`, `gpushare.names`, `gpushare.outputpath` and the generated messages. Invariants: texts go
through the one strict parser, so that a share is never a float; what is unset stays unset, so that the tenant's and the
node's defaults hold; limits are the scheduler's to test, only what cannot be written into a message is refused here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict, TypeVar, Unpack

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


class JobWords(TypedDict, total=False):
    """What a person says of a job, each as the command line takes it; what is absent, or None, is not said."""

    name: str | None
    env: Mapping[str, str] | None
    captured_env: Mapping[str, str] | None
    # "0.25", "25%" or 2.
    gpus: str | int | None
    # "12GiB", as host_memory.
    gpu_memory: str | None
    # One card model, or several: "A100,H100".
    model: str
    # "4" or "500m".
    cpus: str | int | None
    host_memory: str | None
    tasks: str | int | None
    # "0-99", or "0-99%8" for at most 8 at once.
    array: str | None
    # "2h", as grace and start_within.
    time: str | None
    priority: str | int | None
    max_retries: str | int | None
    grace: str | None
    fence: str | None
    on_disconnect: str | None
    labels: Mapping[str, str] | None
    node_labels: Mapping[str, str] | None
    pty: bool
    stdin: bool
    window: WindowSize | None
    min_tasks: str | int | None
    qos: str | None
    preemption: str | None
    on_task_failure: str | None
    topology: str | None
    # Pairs of a kind ("after", "afterany", "afterok") and a job's resource name.
    after: Sequence[tuple[str, str]]
    start_within: str | None
    # Files on the node, "logs/%j.out".
    output: str | None
    error: str | None
    visible_devices: str | None
    # "USR1@10m" or "USR1@10m:all".
    early_signal: str | None
    # Codes as texts: "85", "85,86".
    requeue_exit_codes: Sequence[str]


def job_spec(argv: Sequence[str], *, working_directory: str, script: bytes = b"", **words: Unpack[JobWords]) -> JobSpec:
    """A JobSpec for `AsyncClient.create_job`. `argv` holds the arguments alone where there is a `script`. Raises
    TextError with `field`."""
    unknown = ", ".join(words.keys() - JobWords.__annotations__.keys())
    if unknown:
        raise TypeError(f"job_spec() got an unexpected keyword argument: {unknown}")
    array, name, pty = words.get("array"), words.get("name"), words.get("pty", False)
    spec = JobSpec(
        argv=[_utf8(argument, f"argv[{index}]") for index, argument in enumerate(argv)],
        script=script,
        name=None if name is None else _utf8(name, "name"),
        working_directory=_utf8(working_directory, "working_directory"),
        env=_checked_pairs(words.get("env"), "env"),
        captured_env=_checked_pairs(words.get("captured_env"), "captured_env"),
        resources=_resources(words),
        labels=_checked_pairs(words.get("labels"), "label"),
        pty=pty,
        stdin=words.get("stdin", False),
        window=words.get("window"),
        tasks=_number(words.get("tasks"), "tasks", 1),
        min_tasks=_number(words.get("min_tasks"), "min_tasks", 1),
        priority=_number(words.get("priority"), "priority", -_INT64_MAX, _INT64_MAX),
        max_retries=_number(words.get("max_retries"), "max_retries"),
        on_disconnect=_choice(words.get("on_disconnect"), "on_disconnect", ON_DISCONNECT),
        qos=_choice(words.get("qos"), "qos", QOS),
        preemption=_choice(words.get("preemption"), "preemption", PREEMPTIONS),
        on_task_failure=_choice(words.get("on_task_failure"), "on_task_failure", ON_TASK_FAILURE),
        topology=_choice(words.get("topology"), "topology", TOPOLOGIES),
        output_path=_output_path(words.get("output"), "output", array, name, pty=pty),
        error_path=_output_path(words.get("error"), "error", array, name, pty=pty),
        visible_devices=_choice(words.get("visible_devices"), "visible_devices", VISIBLE_DEVICES),
        after=[
            Dependency(job=_utf8(job, "after"), kind=_choice(kind, "after", AFTER))
            for kind, job in words.get("after", ())
        ],
    )
    spec.requeue_exit_codes.extend(_codes(words.get("requeue_exit_codes", ())))
    if (signal := words.get("early_signal")) is not None:
        spec.early_signal.CopyFrom(_early_signal(signal))
    spec.resources.node_labels.update(_checked_pairs(words.get("node_labels"), "node_label"))
    _set_array(spec, array)
    for text, field, duration in (
        (words.get("time"), "time", spec.max_run_duration),
        (words.get("grace"), "grace", spec.grace_duration),
        (words.get("start_within"), "start_within", spec.start_within),
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
    return _resources({"gpus": gpus, "gpu_memory": gpu_memory, "model": model})


def _resources(words: JobWords) -> Resources:
    resources = Resources(gpu_model=_models(words.get("model", "")))
    if (gpus := words.get("gpus")) is not None:
        amount = parse_gpus(str(gpus))
        if amount.gpu_milli:
            resources.gpu_milli = amount.gpu_milli
        else:
            resources.gpus = amount.gpus
    if (gpu_memory := words.get("gpu_memory")) is not None:
        resources.gpu_memory_mib = parse_memory_mib(gpu_memory, "gpu_memory")
    if (cpus := words.get("cpus")) is not None:
        resources.cpu_milli = parse_cpu_milli(str(cpus), "cpus")
    if (host_memory := words.get("host_memory")) is not None:
        resources.memory_mib = parse_memory_mib(host_memory, "host_memory")
    enforcement = _choice(words.get("fence"), "fence", FENCES)
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
