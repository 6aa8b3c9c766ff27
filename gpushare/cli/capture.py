"""What a job takes along from the shell that submits it: its script, its working directory, its environment.

Imports click and the names. Invariants: a script's bytes are read once, here, so that a later edit does not change a
queued job; what was captured and what was asked for stay apart, because the scheduler drops a reserved name from the
one and refuses it in the other.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import click

from gpushare.names import TextError

SCRIPT_MAX_BYTES = 1 << 20
ENV_FILE_MAX_BYTES = 1 << 20
_PROGRAM_HEAD_BYTES = 4096

_CAPTURED = re.compile(r"PATH|VIRTUAL_ENV|CONDA_.*|PYTHONPATH|LD_LIBRARY_PATH|LANG|TERM")


def script_and_argv(words: tuple[str, ...], *, is_command: bool) -> tuple[bytes, list[str]]:
    """(script, arguments) of SCRIPT ARG..., or (b"", command) of -- CMD ARG...; SCRIPT - is standard input."""
    if not words:
        raise click.UsageError("nothing to run; name a SCRIPT, or write -- and a command")
    if is_command:
        return b"", list(words)
    return _read_script(words[0]), list(words[1:])


def _read_script(path: str) -> bytes:
    try:
        if path == "-":
            script = sys.stdin.buffer.read(SCRIPT_MAX_BYTES + 1)
        else:
            with Path(path).open("rb") as file:
                script = file.read(SCRIPT_MAX_BYTES + 1)
    except FileNotFoundError as err:
        raise click.UsageError(f"there is no script {path!r}; to run a command, write -- before it") from err
    except (OSError, ValueError) as err:
        why = err.strerror if isinstance(err, OSError) else str(err)
        raise click.UsageError(f"the script {path!r} cannot be read: {why}") from err
    if len(script) > SCRIPT_MAX_BYTES:
        raise click.UsageError(f"the script {path!r} is larger than 1 MiB; keep data in files beside it")
    if not script:
        raise click.UsageError(f"the script {path!r} is empty")
    if not script.startswith(b"#!") and b"\0" not in script[:_PROGRAM_HEAD_BYTES]:
        # Nothing runs text but what its first line names; a program for the machine is the node's to judge.
        command = click.get_current_context().command_path
        runs = "python" if path.endswith(".py") else "bash"
        raise click.UsageError(
            f"the script {path!r} begins with no #! line; write one, or: {command} -- {runs} {path} ARG"
        )
    return script


def is_fed() -> bool:
    """Whether standard input is a pipe, or a file that has something in it."""
    try:
        found = os.fstat(sys.stdin.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return stat.S_ISFIFO(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_size > 0)


def working_directory(chdir: str | None) -> str:
    """--chdir, made absolute against the current directory, else that directory itself."""
    try:
        # The shell's own name for it: a path through a link is the one that exists on every node.
        here = os.environ.get("PWD", "")
        if not (here.startswith("/") and os.path.samefile(here, ".")):
            here = os.getcwd()
    except OSError:
        here = os.getcwd()
    return here if chdir is None else os.path.join(here, chdir)


def captured_env(export: str | None, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What --export says of the submitter's environment; without it the variables that programs are found by."""
    if export is None:
        return {key: value for key, value in environ.items() if _CAPTURED.fullmatch(key) and _is_utf8(value)}
    if export == "none":
        return {}
    if export == "all":
        return {key: value for key, value in environ.items() if _is_utf8(key) and _is_utf8(value)}
    names = export.split(",")
    for name in names:
        if name not in environ:
            raise TextError("export", name, "is not set here", "all, none, or names of variables: A,B")
    return {name: environ[name] for name in names}


def left_out(export: str | None, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Names that `captured_env` would take but no message can carry, because they are not UTF-8."""
    wanted = environ if export == "all" else {key: environ[key] for key in environ if _CAPTURED.fullmatch(key)}
    if export not in (None, "all"):
        return []
    return [ascii(key)[1:-1] for key, value in wanted.items() if not (_is_utf8(key) and _is_utf8(value))]


def explicit_env(pairs: Iterable[str], env_file: str | None) -> dict[str, str]:
    """--env-file, then --env on top of it."""
    variables = _read_env_file(env_file) if env_file is not None else {}
    variables.update(split_pairs(pairs, "env"))
    return variables


def split_pairs(pairs: Iterable[str], field: str) -> dict[str, str]:
    """K=V each; the value may hold more of "="."""
    split: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise TextError(field, pair, "has no =", "K=V")
        if key in split:
            raise TextError(field, key, "is given twice", "each name once")
        split[key] = value
    return split


def _read_env_file(path: str) -> dict[str, str]:
    try:
        with Path(path).open("rb") as file:
            data = file.read(ENV_FILE_MAX_BYTES + 1)
        text = data.decode()
    except (OSError, ValueError) as err:
        why = err.strerror if isinstance(err, OSError) else "it is not UTF-8"
        raise click.UsageError(f"--env-file {path!r} cannot be read: {why}") from err
    if len(data) > ENV_FILE_MAX_BYTES:
        raise click.UsageError(f"--env-file {path!r} is larger than 1 MiB")
    variables: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r")
        if line.strip() == "" or line.startswith("#"):
            continue
        key, equals, value = line.partition("=")
        if not equals:
            raise click.UsageError(f"--env-file {path!r}, line {number}: there is no =; write K=V")
        variables[key] = value
    return variables


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
