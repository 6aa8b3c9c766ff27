"""The API's messages as JSON and as the words and figures of a table.

Imports protobuf's JSON mapping and the client's messages; the one module of the command line that knows protobuf.
Invariants: JSON keys are the proto's JSON names, fields without a value are there with their default, and what is
printed is one valid JSON document.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from gpushare.client import messages as m
from gpushare.quantity import format_cpu_milli, format_duration_ms, format_gpus, format_memory_mib


def as_json(message: Message) -> dict[str, Any]:
    """The message in protobuf's JSON mapping: 64-bit integers are strings, bytes base64, times RFC 3339."""
    return MessageToDict(message, always_print_fields_with_no_presence=True)


def print_json(value: Message | Mapping[str, Any]) -> None:
    """One JSON document on stdout."""
    document = as_json(value) if isinstance(value, Message) else value
    json.dump(document, sys.stdout, indent=2, ensure_ascii=True)
    sys.stdout.write("\n")


def print_json_list(key: str, messages: Iterable[Message]) -> None:
    """{key: [...]}: what a listing's answer looks like when all of its pages are one."""
    print_json({key: [as_json(message) for message in messages]})


def word(enum: Any, value: int) -> str:
    """ "RUNNING" for JOB_STATE_RUNNING; the bare number where a newer scheduler has more values."""
    if value not in enum.values():
        return str(value)
    prefix = enum.Name(0).removesuffix("UNSPECIFIED")
    name = str(enum.Name(value).removeprefix(prefix))
    return "" if name == "UNSPECIFIED" else name


def job_state(job: m.Job | m.JobExplanation) -> str:
    return word(m.JobState, job.state)


def fence(value: int) -> str:
    """ "soft", "server", "hard" or ""."""
    return word(m.Enforcement, value).lower()


def request_text(resources: m.Resources, tasks: int = 1) -> str:
    """What each task asks for: "2", "0.25", "12GiB" (memory alone), "0"; "4 x 1" for a gang."""
    if resources.HasField("gpu_milli"):
        text = format_gpus(0, resources.gpu_milli)
    elif resources.HasField("gpus"):
        text = format_gpus(resources.gpus, 0)
    elif resources.HasField("gpu_memory_mib"):
        text = format_memory_mib(resources.gpu_memory_mib)
    else:
        text = ""
    return f"{tasks} x {text}" if tasks > 1 else text


def request_sentence(resources: m.Resources) -> str:
    """What each task asks for, in words: "1 GPU", "0.25 GPU with 12GiB", "no GPU"."""
    memory = f" with {format_memory_mib(resources.gpu_memory_mib)}" if resources.HasField("gpu_memory_mib") else ""
    if resources.HasField("gpu_milli"):
        return f"{format_gpus(0, resources.gpu_milli)} GPU{memory}"
    if not resources.HasField("gpus"):
        return f"a share of one GPU{memory}" if memory else "the default"
    if resources.gpus == 0:
        return "no GPU"
    return f"{resources.gpus} whole GPU{'s' if resources.gpus > 1 else ''}"


def memory_text(memory_mib: int) -> str:
    return format_memory_mib(memory_mib) if memory_mib else ""


def cpus_text(cpu_milli: int) -> str:
    return format_cpu_milli(cpu_milli)


def milli_text(milli: int) -> str:
    """Thousandths of a card as cards: 250 is "0.25"."""
    return format_cpu_milli(milli)


def charge_seconds(charge_milli_seconds: int) -> str:
    """Card-seconds with three decimals."""
    return f"{charge_milli_seconds // 1000}.{charge_milli_seconds % 1000:03d}"


def time_text(message: Any, field: str) -> str:
    """Local wall time to the second, "" where the field is unset."""
    if not message.HasField(field):
        return ""
    stamp: Timestamp = getattr(message, field)
    return stamp.ToDatetime(UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def ran_text(job: Any) -> str:
    """How long its present tasks have run, or its last ones did; whole seconds, "" before they began. What a job that
    ran more than once has waited in between is not in it."""
    tasks = [task for task in job.tasks if task.HasField("start_time")] or ([job] if job.HasField("start_time") else [])
    if not tasks:
        return ""
    start_ms = min(task.start_time.ToMilliseconds() for task in tasks)
    until_ms = max(task.end_time.ToMilliseconds() if task.HasField("end_time") else now_ms() for task in tasks)
    return short_duration(max(until_ms - start_ms, 0) // 1000)


def short_duration(seconds: int) -> str:
    """The two largest units: "3d4h", "2h5m", "1m30s", "9s"."""
    if seconds >= 86_400:
        seconds -= seconds % 3600
    elif seconds >= 3600:
        seconds -= seconds % 60
    return format_duration_ms(seconds * 1000)


def now_ms() -> int:
    return int(datetime.now(UTC).timestamp() * 1000)


def job_id(job: m.Job, own_tenant: str) -> str:
    """ "42" in the caller's own tenant, else "vision/42": what the other commands take."""
    return job.id if job.tenant == own_tenant else f"{job.tenant}/{job.id}"


def short_name(name: str) -> str:
    """ "vision" of "tenants/vision", "node-1" of "nodes/node-1", "vision/42" of "tenants/vision/jobs/42"."""
    parts = name.split("/")
    return f"{parts[1]}/{parts[3]}" if len(parts) == 4 else parts[-1]


def reason_sentence(reason: str, detail: str) -> str:
    """ "REASON: what happened", with the reason's own sentence where there is no detail."""
    from gpushare.reasons import SENTENCES, Reason

    if not reason:
        return detail
    known = SENTENCES[Reason(reason)][0] if reason in Reason.__members__ else ""
    return f"{reason}: {detail or known}".rstrip(": ")


def what_to_do(reason: str) -> str:
    """The way out of a wait or an end, as a sentence; "" for a reason that this version does not know."""
    from gpushare.reasons import SENTENCES, Reason

    return SENTENCES[Reason(reason)][1] if reason in Reason.__members__ else ""
