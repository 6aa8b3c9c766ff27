"""Records with something in every field, so that a test of what is shown meets every field that there is.

By reflection over the structs: a field that is added later is filled, too, without a word here. What is there already
stays. A text is HIDDEN, which no answer may hold that does not show that text.
"""

from __future__ import annotations

import types
from enum import Enum
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

HIDDEN = "secret"
_S = TypeVar("_S", bound=msgspec.Struct)
# Fields whose text has a form.
_KEYS = frozenset({"claimant", "preempted_for", "job"})


def filled(record: _S, *leave: str, **fields: Any) -> _S:
    """A copy of `record` in which every field that was empty holds something, all but `leave`; `fields` go first."""
    hints = get_type_hints(type(record))
    changed = dict(fields)
    for name in record.__struct_fields__:
        value = getattr(record, name)
        if name in fields or name in leave:
            continue
        if isinstance(value, msgspec.Struct):
            changed[name] = filled(value)
        elif not value or (isinstance(value, Enum) and not value.value):
            changed[name] = _sample(hints[name], name)
    return msgspec.structs.replace(record, **changed)


def made(struct: type[_S], **fields: Any) -> _S:
    """A record of nothing but samples and `fields`."""
    hints = get_type_hints(struct)
    return struct(**{name: fields.get(name, _sample(hints[name], name)) for name in struct.__struct_fields__})


def _sample(kind: Any, name: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _sample(next(arg for arg in args if arg is not type(None)), name)
    if origin is tuple:
        return tuple(_sample(arg, name) for arg in args if arg is not Ellipsis)
    if origin in (list, set, frozenset):
        return origin([_sample(args[0], name)])
    if origin is dict:
        return {_sample(args[0], name): _sample(args[1], name)}
    if isinstance(kind, type) and issubclass(kind, Enum):
        return list(kind)[-1]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return made(kind)
    simple = {bool: True, int: 7, float: 7.0, bytes: HIDDEN.encode(), str: "vision/1" if name in _KEYS else HIDDEN}
    return simple[kind]
