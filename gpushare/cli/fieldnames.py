"""The API's names of fields as what a person typed: options of the command line in place of fields of a request.

Imports the errors alone. Invariant: only names are replaced, never what a person wrote, which stands in quotes.
"""

from __future__ import annotations

import re
from typing import Final

from gpushare.errors import FieldViolation, GpushareError
from gpushare.reasons import SENTENCES, Reason

# Where a field and the option that sets it have different names. "" where no single option does.
_OPTION_OF_FIELD: Final = {
    "after": "--after",
    "array_indexes": "--array",
    "array_max_running": "--array",
    "cpu_limit_milli": "--cpu-limit",
    "default_run": "--default-time",
    "early_signal": "--signal",
    "error_path": "--error",
    "grace_duration": "--grace",
    "gpu_memory_mib": "--gpu-memory",
    "gpu_milli": "--gpus",
    "guaranteed_milli": "--guaranteed",
    "labels": "--label",
    "limit_milli": "--limit",
    "longer_by": "TIME",
    "max_queued_jobs": "--max-queued",
    "max_retries": "--max-retries",
    "max_run": "--max-time",
    "max_run_duration": "--time",
    "max_running_jobs": "--max-running",
    "max_running_per_user": "--max-running-per-user",
    "memory_limit_mib": "--memory-limit",
    "min_run": "--min-run",
    "min_tasks": "--min-tasks",
    "model_quotas": "--model-quota",
    "on_task_failure": "--on-task-failure",
    "output_path": "--output",
    "priority": "--priority",
    "requeue_exit_codes": "--requeue-exit-code",
    "resources": "",
    "resources.cpu_milli": "--cpus",
    "resources.gpu_memory_mib": "--gpu-memory",
    "resources.gpu_milli": "--gpus",
    "resources.gpu_model": "--model",
    "resources.gpus": "--gpus",
    "resources.memory_mib": "--host-memory",
    "resources.min_enforcement": "--fence",
    "resources.node_labels": "--node-label",
    "start_within": "--start-within",
    "tasks": "--tasks",
    "topology": "--topology",
    "unix_groups": "--unix-group",
    "unix_users": "--unix-user",
    "weight": "--weight",
    "working_directory": "--chdir",
}
_OF_COMMAND: Final = {"extend": {"max_run_duration": "TIME"}, "submit": {"name": "--name"}, "run": {"name": "--name"}}
# Only these are no words of a sentence, too.
_NAMES = "|".join(re.escape(field) for field in _OPTION_OF_FIELD if "_" in field or "." in field)
_IN_SENTENCES = re.compile(rf"(?<![\w.'\"/-])(?:{_NAMES})(?![\w'\"/-])")


def option_of(field: str) -> str:
    """The option that sets `field`, the field itself where none has another name, or "" where it is several."""
    return _OPTION_OF_FIELD.get(field, field)


def without_field(message: str, field: str) -> str:
    """ "is above 2d" of "max_run: is above 2d", and "'x': has a space" of "name 'x': has a space"."""
    if message.startswith((f"{field}:", f"{field} ")):
        return message.removeprefix(field).removeprefix(":").strip()
    return message


def in_options(err: GpushareError, command: str = "") -> str:
    """ "REASON: sentence (what to do)", about what was typed with `command`."""
    options = _OPTION_OF_FIELD | _OF_COMMAND.get(command, {})
    message = err.message
    for field, _ in err.violations:
        rest = without_field(message, field)
        if rest != message and field in options:
            between = " " if message.startswith(f"{field} ") else ": "
            message = between.join(filter(None, (options[field], rest)))
    if err.violations:
        message = _options_in(message)
    told = [
        FieldViolation(options.get(field, field), _options_in(description)) for field, description in err.violations
    ]
    unsaid = [each for each in told if each.description.removesuffix("...").rstrip(". ") not in message]
    shown = type(err)(err.reason, message, what_to_do=err.what_to_do, violations=unsaid)
    # Whoever types a command sends no request; the sentence has said what is accepted.
    is_plain = err.reason is Reason.INVALID_FIELD and err.what_to_do == SENTENCES[err.reason][1]
    return shown.sentence if is_plain else str(shown)


def _options_in(text: str) -> str:
    return _IN_SENTENCES.sub(lambda found: _OPTION_OF_FIELD[found[0]], text)
