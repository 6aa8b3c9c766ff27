"""Where a task's output goes when the job names a file: what such a text may hold, and the path it means.

Pure: imports the names' rules alone, so that the command line, the core and whoever tells a person where the output is
agree about it. Invariants: a pattern that `check_output_path` let pass expands for every task of its job, and what is
put in for a % can hold no slash, so that it never leaves the directory that the pattern names.
"""

from __future__ import annotations

import re

from gpushare.names import TextError, check_text

OUTPUT_PATH_MAX_BYTES = 4096
OUTPUT_PATH_RULE = (
    "a file's path with %j (job), %A (array), %a (index in the array), %t (task), %u (user), %x (job name) or %% (a %)"
)

_PERCENT = re.compile(r"%(.?)", re.DOTALL)
_LETTERS = frozenset("jAatux%")


def check_output_path(pattern: str, field: str, *, is_array: bool, has_name: bool) -> str:
    """`pattern` itself. Raises TextError for what is no path, or where one of its % would stand for nothing."""
    check_text(pattern, field, max_bytes=OUTPUT_PATH_MAX_BYTES)
    if pattern == "":
        raise TextError(field, pattern, "is empty", OUTPUT_PATH_RULE)
    if pattern.rpartition("/")[2] in ("", ".", ".."):
        raise TextError(field, pattern, "names a directory", OUTPUT_PATH_RULE)
    letters = {match[1] for match in _PERCENT.finditer(pattern)}
    if unknown := sorted(letters - _LETTERS):
        raise TextError(field, pattern, f"has %{unknown[0]}", OUTPUT_PATH_RULE)
    if "a" in letters and not is_array:
        raise TextError(field, pattern, "has %a, and the job is no array", OUTPUT_PATH_RULE)
    if "x" in letters and not has_name:
        raise TextError(field, pattern, "has %x, and the job has no name", OUTPUT_PATH_RULE)
    return pattern


def expand_output_path(pattern: str, *, job_id: str, task: int, user: str, name: str) -> str:
    """The path of one task of a job; `job_id` is "42", or "42_3" for the child of an array."""
    array, _, index = job_id.partition("_")
    values = {"j": job_id, "A": array, "a": index, "t": str(task), "u": user, "x": name, "%": "%"}
    return _PERCENT.sub(lambda match: values[match[1]], pattern)
