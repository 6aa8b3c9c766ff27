"""A tenant's settings as a person writes them -> the API's message: `tenant create`, `tenant set`, `quota preview`.

Imports the client's messages and the quantities. Invariant: what is not given stays unset, and so does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpushare.client.messages import ModelQuota, TenantSettings
from gpushare.client.spec import request_of
from gpushare.names import TextError
from gpushare.quantity import (
    parse_cpu_milli,
    parse_duration_ms,
    parse_int,
    parse_memory_mib,
    parse_thousandths,
)

NONE = "none"
_CARDS = 'cards in steps of 0.001 ("4", "2.5", "0")'
_CARDS_MAX_MILLI = 10_000_000_000
_INT64 = {"minimum": -(2**63), "maximum": 2**63 - 1}

# Settings of one number: option -> (field of the message, parser). "none" takes away those in _UNSET.
_NUMBERS: dict[str, tuple[str, Callable[[str, str], int]]] = {
    "guaranteed": ("guaranteed_milli", lambda text, field: parse_cards(text, field)),
    "limit": ("limit_milli", lambda text, field: parse_cards(text, field, or_none=True)),
    "weight": ("weight", lambda text, field: parse_int(text, field, minimum=1)),
    "max_running": ("max_running_jobs", parse_int),
    "max_running_per_user": ("max_running_per_user", parse_int),
    "cpu_limit": ("cpu_limit_milli", parse_cpu_milli),
    "memory_limit": ("memory_limit_mib", parse_memory_mib),
    "max_queued": ("max_queued_jobs", parse_int),
    "max_priority": ("max_priority", lambda text, field: parse_int(text, field, **_INT64)),
}
# Settings of one duration: option -> (field, the least in ms); "none" takes each away.
_DURATIONS = {"min_run": ("min_run", 0), "default_time": ("default_run", 1), "max_time": ("max_run", 1)}
_UNSET = frozenset({"max_running", "max_running_per_user", "cpu_limit", "memory_limit"})


def settings_of(options: Mapping[str, Any]) -> TenantSettings:
    """`options` by the names of the command line's parameters; None and () are not given. Raises TextError."""
    settings = TenantSettings()
    for option, (field, parse) in _NUMBERS.items():
        text = options.get(option)
        if text is None:
            continue
        if text == NONE and option == "limit":
            settings.no_limit = True
        elif text == NONE and option in _UNSET:
            settings.unset.append(field)
        else:
            setattr(settings, field, parse(text, option))
    _add_others(settings, options)
    _add_people(settings, options)
    _add_model_quotas(settings, options.get("model_quotas") or ())
    return settings


def _add_others(settings: TenantSettings, options: Mapping[str, Any]) -> None:
    parent = options.get("parent")
    if parent is not None:
        settings.parent = "" if parent == NONE else f"tenants/{parent.removeprefix('tenants/')}"
    if options.get("isolated") is not None:
        settings.isolated = options["isolated"] == "on"
    for option, (field, least_ms) in _DURATIONS.items():
        text = options.get(option)
        if text == NONE:
            settings.unset.append(field)
        elif text is not None:
            getattr(settings, field).FromMilliseconds(parse_duration_ms(text, option, minimum=least_ms))
    if options.get("display_name") is not None:
        settings.display_name = options["display_name"]
    if options.get("default_gpus") is not None or options.get("default_gpu_memory") is not None:
        settings.default_request.CopyFrom(request_of(options["default_gpus"], options["default_gpu_memory"]))


def _add_people(settings: TenantSettings, options: Mapping[str, Any]) -> None:
    for field in ("unix_groups", "unix_users"):
        people = list(options.get(field) or ())
        if people == [NONE]:
            settings.unset.append(field)
        else:
            getattr(settings, field).extend(people)


def _add_model_quotas(settings: TenantSettings, texts: Sequence[str]) -> None:
    """ "H100-80GB=2:4", "H100=2", "H100=none"."""
    for text in texts:
        model, equals, amounts = text.rpartition("=")
        if not equals or not model:
            raise TextError("model_quota", text, "is no quota of a model", "MODEL=GUARANTEED, MODEL=GUARANTEED:LIMIT")
        if amounts == NONE:
            settings.no_model_quotas.append(model)
            continue
        guaranteed, colon, limit = amounts.partition(":")
        quota = ModelQuota(model=model, guaranteed_milli=parse_cards(guaranteed, "model_quota"))
        if colon and limit != NONE:
            quota.limit_milli = parse_cards(limit, "model_quota", or_none=True)
        settings.model_quotas.append(quota)


def parse_cards(text: str, field: str, *, or_none: bool = False) -> int:
    """Thousandths of a card."""
    return parse_thousandths(text, field, f"{_CARDS}, or none" if or_none else _CARDS, maximum=_CARDS_MAX_MILLI)
