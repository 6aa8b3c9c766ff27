"""What other tenants are shown of a job, where the cluster shows it at all: who holds how much, where and until when.

Imports the generated messages alone. Invariant: the message is made by copying the fields that are named here, so a
field that nobody named is not shown. What a name, a command or a sentence may tell of a project is never among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeVar

from google.protobuf.message import Message

from gpushare.v1 import job_pb2

_M = TypeVar("_M", bound=Message)

#: Field -> the fields of its message that are shown; empty: the field as it is.
Fields = Mapping[str, "Fields"]
_WHOLE: Final[Fields] = {}


def _whole(*names: str) -> Fields:
    return dict.fromkeys(names, _WHOLE)


_RESOURCES: Final = _whole("gpus", "gpu_milli", "gpu_memory_mib", "cpu_milli", "memory_mib", "gpu_model")
_ATTEMPT: Final = _whole(
    "attempt_id", "task_index", "number", "state", "node", "gpu_uuids", "gpu_milli", "gpu_memory_mib", "cpu_milli",
    "memory_mib", "start_time", "end_time",
)  # fmt: skip
FOREIGN_JOB: Final[Fields] = {
    **_whole("name", "tenant", "id", "array_id", "array_index", "state"),
    **_whole("create_time", "start_time", "end_time", "expected_start_time", "expected_end_time"),
    "created_by": _whole("user", "tenant"),
    "wait": _whole("reason"),
    "spec": {"tasks": _WHOLE, "min_tasks": _WHOLE, "resources": _RESOURCES},
    "tasks": _ATTEMPT,
}


def foreign_job(whole: job_pb2.Job) -> job_pb2.Job:
    """Of a job's message what other tenants are shown."""
    made = _copied(whole, FOREIGN_JOB)
    made.redacted = made.foreign = True
    return made


def _copied(source: _M, fields: Fields) -> _M:
    made = type(source)()
    for field, value in source.ListFields():
        if field.name not in fields:
            continue
        inner = fields[field.name]
        if field.is_repeated:
            getattr(made, field.name).extend([_copied(each, inner) for each in value] if inner else value)
        elif field.message_type is not None:
            getattr(made, field.name).CopyFrom(_copied(value, inner) if inner else value)
        else:
            setattr(made, field.name, value)
    return made
