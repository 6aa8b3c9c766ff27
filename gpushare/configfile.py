"""Settings from a TOML file, the environment and flags, checked against one frozen struct.

Imports msgspec and the standard library. Later sources win: file, then environment, then flags. Invariants: a
key that the struct does not have is an error, whatever the source; so are a duplicate key, a unit of another
kind and a number out of range; every error names the source, the line where there is one, and the key, and
never shows the value of a secret.

A key ends in its unit (`_s`, `_ms`, `_mib`, `_bytes`): a plain integer counts that unit, a text carries its own
("10s").
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from msgspec import inspect

from gpushare.errors import FailedPreconditionError
from gpushare.names import shown
from gpushare.quantity import MAX_INT32, QuantityError, parse_duration_ms, parse_int, parse_memory_mib
from gpushare.reasons import Reason

FILE_MAX_BYTES = 1 << 20
MIB = 1 << 20
_PRINTED_BITS = 1024

_T = TypeVar("_T", bound=msgspec.Struct)
_FRACTION = re.compile(r"[0-9]+(\.[0-9]+)?")
_WHOLE = re.compile(r"-?[0-9]+")
_AT_LINE = re.compile(r"at line ([0-9]+)")
_KEY = re.compile(r"\s*((?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*'))*)\s*=")
_TABLE = re.compile(r"\s*\[+\s*([^\]]+?)\s*\]")


class Setting(NamedTuple):
    """A value and where it was said: `source` is a path, "environment" or "command line"; `line` is 0 without one."""

    value: object
    source: str
    line: int = 0

    @property
    def where(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


class ConfigError(FailedPreconditionError):
    """Settings that were refused. Names `source`, `line` (0 where there is none) and `key`."""

    def __init__(self, where: Setting, key: str, why: str, what_to_do: str = "") -> None:
        self.source = where.source
        self.line = where.line
        self.key = key
        super().__init__(
            Reason.CONFIG_INVALID,
            f"{where.where}: {key}: {why}" if key else f"{where.where}: {why}",
            what_to_do=what_to_do,
            metadata={"source": where.source, "line": str(where.line), "key": key},
        )


# -- sources


def read_toml(path: Path) -> dict[str, Setting]:
    """Every key of the file by its dotted name. ConfigError for a file that cannot be read or is no TOML."""
    whole = Setting(None, str(path))
    try:
        with path.open("rb") as file:
            data = file.read(FILE_MAX_BYTES + 1)
    except OSError as err:
        raise ConfigError(whole, "", f"this file cannot be read: {err.strerror}", "Correct the path or mode.") from err
    if len(data) > FILE_MAX_BYTES:
        raise ConfigError(whole, "", f"this file is larger than {FILE_MAX_BYTES} bytes")
    try:
        text = data.decode()
        document = tomllib.loads(text)
    except UnicodeDecodeError as err:
        line = data[: err.start].count(b"\n") + 1
        raise ConfigError(Setting(None, str(path), line), "", "this line is not UTF-8") from err
    except (ValueError, RecursionError) as err:  # also for numbers too long and brackets too deep to read
        raise _not_toml(path, text, str(err)) from err
    lines = _lines_of_keys(text)
    found: dict[str, Setting] = {}
    for key, value in _flattened(document):
        found[key] = Setting(value, str(path), lines.get(key) or lines.get(key.partition(".")[0], 0))
    return found


def read_environment(prefix: str, cls: type[msgspec.Struct], environ: Mapping[str, str]) -> dict[str, Setting]:
    """GPUSHARE_AGENT_STATE_DIR is `state_dir` for the prefix "GPUSHARE_AGENT_"; an unknown name is an error."""
    key_of = {prefix + key.replace(".", "_").upper(): key for key in fields_of(cls)}
    found: dict[str, Setting] = {}
    for name in sorted(environ):
        if name.startswith(prefix):
            where = Setting(environ[name], f"environment variable {name}")
            if name not in key_of:
                raise ConfigError(where, "", "there is no such setting" + _nearest(name, key_of), "Unset it.")
            found[key_of[name]] = where
    return found


def read_flags(flags: Mapping[str, object]) -> dict[str, Setting]:
    """Overrides by key; None means that the flag was not given."""
    return {
        key: Setting(value, f"flag --{key.replace('_', '-').replace('.', '-')}")
        for key, value in flags.items()
        if value is not None
    }


def refuse_readable_by_others(path: Path, key: str) -> None:
    """ConfigError where a file that holds a secret can be read by its group or by everybody."""
    where = Setting(None, str(path))
    try:
        mode = path.stat().st_mode
    except OSError as err:
        raise ConfigError(where, key, f"this file cannot be read: {err.strerror}", "Correct the path.") from err
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(
            where,
            key,
            f"this file holds a secret and its mode {stat.S_IMODE(mode):04o} lets others read it",
            f"Run `chmod 600 {path}`, and make a new secret if others may have read this one.",
        )


# -- the struct


def build(cls: type[_T], layers: Sequence[Mapping[str, Setting]]) -> tuple[_T, dict[str, Setting]]:
    """The struct, and for each key that was set where its value came from."""
    fields = fields_of(cls)
    merged: dict[str, Setting] = {}
    for layer in layers:
        for key, setting in layer.items():
            if isinstance(fields.get(key), inspect.DictType):
                # A whole map from a later source takes the place of single entries from an earlier one.
                for entry in [each for each in merged if each.startswith(f"{key}.")]:
                    del merged[entry]
            elif key not in fields and not _is_entry(key, fields):
                raise ConfigError(setting, key, "there is no such key" + _nearest(key, fields), "Take it out.")
            merged[key] = setting
    arguments: dict[str, Any] = {}
    tables: dict[str, dict[str, Any]] = {}
    for key, setting in merged.items():
        if _is_entry(key, fields):
            table, _, name = key.partition(".")
            arguments[table] = {**arguments.get(table, {}), name: _entry(key, setting)}
            continue
        table, _, name = key.rpartition(".")
        value = _converted(fields[key], key, setting)
        (tables.setdefault(table, {}) if table else arguments)[name] = value
    for table, values in tables.items():
        arguments[table] = _table_class(cls, table)(**values)
    return cls(**arguments), merged


def fields_of(cls: type[msgspec.Struct]) -> dict[str, inspect.Type]:
    """Type of every key by its dotted name; tables are one level deep."""
    found: dict[str, inspect.Type] = {}
    for field in _struct(cls).fields:
        if isinstance(field.type, inspect.StructType):
            found.update({f"{field.name}.{each.name}": each.type for each in field.type.fields})
        elif isinstance(field.type, inspect.UnionType):  # "or None": unset is the only way to say None
            found[field.name] = next(each for each in field.type.types if not isinstance(each, inspect.NoneType))
        else:
            found[field.name] = field.type
    return found


def _is_entry(key: str, fields: Mapping[str, inspect.Type]) -> bool:
    """True for one entry of a field that is a map of texts: "labels.rack"."""
    return key not in fields and isinstance(fields.get(key.partition(".")[0]), inspect.DictType)


def _entry(key: str, setting: Setting) -> str:
    if not isinstance(setting.value, str):
        raise ConfigError(setting, key, "accepted: a text")
    return setting.value


def _pairs(key: str, setting: Setting) -> dict[str, str]:
    """ "K=V,K=V", or a map; "" is an empty one."""
    value = setting.value
    if isinstance(value, str):
        words = [word.partition("=") for word in value.split(",")] if value else []
        if all(name and equals for name, equals, _ in words) and len({name for name, _, _ in words}) == len(words):
            return {name: text for name, _, text in words}
    elif isinstance(value, dict) and all(isinstance(each, str) for pair in value.items() for each in pair):
        return dict(value)
    raise ConfigError(setting, key, "accepted: a table of texts, or K=V,K=V with each name once")


def _struct(cls: type[msgspec.Struct]) -> inspect.StructType:
    info = inspect.type_info(cls)
    assert isinstance(info, inspect.StructType)
    return info


def _table_class(cls: type[msgspec.Struct], table: str) -> type[msgspec.Struct]:
    for field in _struct(cls).fields:
        if field.name == table and isinstance(field.type, inspect.StructType):
            return field.type.cls
    raise AssertionError(table)


def _converted(kind: inspect.Type, key: str, setting: Setting) -> object:
    value = setting.value
    if isinstance(kind, inspect.IntType):
        return _integer(kind, key, setting)
    if isinstance(kind, inspect.FloatType):
        return _fraction(kind, key, setting)
    if isinstance(kind, inspect.BoolType):
        texts: Final = {"true": True, "false": False}
        value = texts.get(value, value) if isinstance(value, str) else value
        if not isinstance(value, bool):
            raise ConfigError(setting, key, "accepted: true or false")
        return value
    if isinstance(kind, inspect.DictType):
        return _pairs(key, setting)
    if isinstance(kind, inspect.VarTupleType):
        return _items(kind, key, setting)
    if isinstance(kind, inspect.LiteralType):
        return _one_of(kind, key, setting, value)
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str) or "\0" in value:
        raise ConfigError(setting, key, "accepted: a text")
    if isinstance(kind, inspect.CustomType) and kind.cls is Path:
        if value == "":
            raise ConfigError(setting, key, "accepted: a path")
        return Path(os.path.abspath(os.path.expanduser(value)))
    return value


def _items(kind: inspect.VarTupleType, key: str, setting: Setting) -> tuple[object, ...]:
    """A list, or one text with commas."""
    value = setting.value
    items = value.split(",") if isinstance(value, str) else value
    of_texts = not isinstance(kind.item_type, inspect.FloatType)
    if (
        not isinstance(items, list | tuple)
        or not items
        or (of_texts and not all(isinstance(each, str) and each for each in items))
    ):
        raise ConfigError(setting, key, f"accepted: a list of {'texts' if of_texts else 'numbers like 0.5'}")
    if kind.max_length is not None and len(items) > kind.max_length:
        raise ConfigError(setting, key, f"has {len(items)} entries; accepted: {kind.max_length}")
    if isinstance(kind.item_type, inspect.FloatType):
        return tuple(_fraction(kind.item_type, key, setting._replace(value=each)) for each in items)
    if isinstance(kind.item_type, inspect.LiteralType):
        for each in items:
            _one_of(kind.item_type, key, setting, each)
    return tuple(items)


def _one_of(kind: inspect.LiteralType, key: str, setting: Setting, value: object) -> object:
    if value not in kind.values:
        accepted = ", ".join(repr(each) for each in kind.values)
        raise ConfigError(setting, key, f"{shown(str(value))} is not one of {accepted}")
    return value


def _fraction(kind: inspect.FloatType, key: str, setting: Setting) -> float:
    """A number with a point or without; bounded on both sides."""
    value = setting.value
    _refuse_huge(key, setting)
    if isinstance(value, str) and _FRACTION.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(setting, key, "accepted: a number like 0.5")
    if not (kind.ge or 0) <= value <= (0 if kind.le is None else kind.le):
        raise ConfigError(setting, key, f"{shown(str(setting.value))} is not from {kind.ge} to {kind.le}")
    return float(value)


def _integer(kind: inspect.IntType, key: str, setting: Setting) -> int:
    """An integer of the key's own unit, or a text with a unit of the same kind; the field's bounds hold for both."""
    minimum = 0 if kind.ge is None else kind.ge
    maximum = MAX_INT32 if kind.le is None else kind.le
    value = setting.value
    _refuse_huge(key, setting)
    try:
        if isinstance(value, str) and not _WHOLE.fullmatch(value):
            value = _with_unit(value, key)
        elif isinstance(value, int) and not isinstance(value, bool):
            value = parse_int(str(value), key, minimum=minimum, maximum=maximum)
        elif isinstance(value, str):
            value = parse_int(value, key, minimum=minimum, maximum=maximum)
        else:
            raise ConfigError(setting, key, "accepted: a whole number" + _unit_example(key))
    except QuantityError as err:
        raise ConfigError(setting, key, f"{shown(err.value)} {err.why}; accepted: {err.accepted}") from err
    if not minimum <= value <= maximum:
        raise ConfigError(setting, key, f"{shown(str(setting.value))} is not from {minimum} to {maximum}")
    return value


def _refuse_huge(key: str, setting: Setting) -> None:
    """Python refuses to print numbers of more digits than anybody writes; hexadecimal ones can be read all the same."""
    if isinstance(setting.value, int) and setting.value.bit_length() > _PRINTED_BITS:
        raise ConfigError(setting, key, f"this number has more than {_PRINTED_BITS} bits")


def _with_unit(text: str, key: str) -> int:
    if key.endswith("_ms"):
        return parse_duration_ms(text, key, minimum=0)
    if key.endswith("_s"):
        ms = parse_duration_ms(text, key, minimum=0)
        if ms % 1000:
            raise QuantityError(key, text, "is not a whole number of seconds", 'whole seconds ("10s", "2m")')
        return ms // 1000
    if key.endswith("_mib"):
        return parse_memory_mib(text, key, minimum=0)
    if key.endswith("_bytes"):
        return parse_memory_mib(text, key, minimum=0) * MIB
    return parse_int(text, key)


def _unit_example(key: str) -> str:
    examples = {"_ms": '"500ms"', "_s": '"10s"', "_mib": '"512MiB"', "_bytes": '"4MiB"'}
    return next((f" or a text like {text}" for suffix, text in examples.items() if key.endswith(suffix)), "")


def _nearest(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


# -- where a key stands in a TOML text, for messages alone


def _flattened(document: Mapping[str, object]) -> list[tuple[str, object]]:
    """Dotted keys, one table deep: what lies deeper is reported under the table's key."""
    found: list[tuple[str, object]] = []
    for key, value in document.items():
        if isinstance(value, dict):
            found += [(f"{key}.{name}", each) for name, each in value.items()]
        else:
            found.append((key, value))
    return found


def _lines_of_keys(text: str) -> dict[str, int]:
    lines: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        header = _TABLE.match(line)
        match = _KEY.match(line)
        if header is not None:
            table = _bare(header[1])
            lines.setdefault(table, number)
        elif match is not None:
            key = _bare(match[1])
            lines.setdefault(f"{table}.{key}" if table else key, number)
    return lines


def _bare(key: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in key.split("."))


def _not_toml(path: Path, text: str, said: str) -> ConfigError:
    at = _AT_LINE.search(said)
    lines = text.splitlines()
    number = int(at[1]) if at else len(lines)
    line = lines[number - 1] if 0 < number <= len(lines) else ""
    match = _KEY.match(line) or _TABLE.match(line)
    key = _bare(match[1]) if match else ""
    duplicate = said.startswith(("Cannot overwrite", "Cannot declare", "Duplicate", "Cannot mutate"))
    why = "this key stands here a second time" if duplicate else f"this is no TOML: {said}"
    return ConfigError(Setting(None, str(path), number), key, why, "Correct this line.")
