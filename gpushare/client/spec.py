"""What a person writes about a job -> the JobSpec of the API.

Imports `gpushare.quantity`, `gpushare.names` and the generated messages. Invariants: texts go through the one strict
parser, so that a share is never a float; what is unset stays unset, so that the tenant's and the node's defaults hold;
limits are the scheduler's to test, only what cannot be written into a message is refused here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from gpushare.client.messages import Enforcement, JobSpec, OnDisconnect, Resources
from gpushare.names import TextError
from gpushare.quantity import (
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
) -> JobSpec:
    """A JobSpec for `AsyncClient.create_job`.

    Quantities are the texts of the command line: `gpus` "0.25", "25%" or 2; `gpu_memory` and `host_memory` "12GiB";
    `cpus` "4" or "500m"; `time` and `grace` "2h"; `array` "0-99". `argv` holds the arguments alone where there is a
    `script`. Raises `gpushare.names.TextError`, whose `field` is the parameter's name.
    """
    spec = JobSpec(
        argv=[_utf8(argument, f"argv[{index}]") for index, argument in enumerate(argv)],
        script=script,
        working_directory=_utf8(working_directory, "working_directory"),
        env=_checked_pairs(env, "env"),
        captured_env=_checked_pairs(captured_env, "captured_env"),
        resources=_resources(gpus, gpu_memory, model, cpus, host_memory, fence),
        labels=_checked_pairs(labels, "label"),
        pty=pty,
    )
    spec.resources.node_labels.update(_checked_pairs(node_labels, "node_label"))
    if name is not None:
        spec.name = _utf8(name, "name")
    if tasks is not None:
        spec.tasks = parse_int(str(tasks), "tasks", minimum=1)
    if array is not None:
        spec.array_indexes.extend(parse_array(array, MAX_ARRAY_INDEXES))
    if time is not None:
        spec.max_run_duration.FromMilliseconds(parse_duration_ms(time, "time"))
    if priority is not None:
        spec.priority = parse_int(str(priority), "priority", minimum=-_INT64_MAX, maximum=_INT64_MAX)
    if max_retries is not None:
        spec.max_retries = parse_int(str(max_retries), "max_retries")
    if grace is not None:
        spec.grace_duration.FromMilliseconds(parse_duration_ms(grace, "grace"))
    if on_disconnect is not None:
        spec.on_disconnect = _choice(on_disconnect, "on_disconnect", ON_DISCONNECT)
    return spec


def request_of(gpus: str | int | None, gpu_memory: str | None) -> Resources:
    """The GPU part of a request alone; a tenant's default request is one too."""
    return _resources(gpus, gpu_memory, "", None, None, None)


def _resources(
    gpus: str | int | None,
    gpu_memory: str | None,
    model: str,
    cpus: str | int | None,
    host_memory: str | None,
    fence: str | None,
) -> Resources:
    resources = Resources(gpu_model=_utf8(model, "model"))
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
    if fence is not None:
        resources.min_enforcement = _choice(fence, "fence", FENCES)
    return resources


def _choice(value: str, field: str, choices: Mapping[str, _Choice]) -> _Choice:
    if value not in choices:
        raise TextError(field, value, "is not one of these", ", ".join(choices))
    return choices[value]


def _checked_pairs(pairs: Mapping[str, str] | None, field: str) -> dict[str, str]:
    return {_utf8(key, field): _utf8(value, f"{field}[{key}]") for key, value in (pairs or {}).items()}


def _utf8(value: str, field: str) -> str:
    """Bytes that are no UTF-8 reach Python as lone surrogates, which no message can carry."""
    try:
        value.encode()
    except UnicodeEncodeError as err:
        raise TextError(field, value, "is not valid UTF-8", "UTF-8 text") from err
    return value
