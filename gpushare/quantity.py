"""Texts of quantities <-> integers: shares of a GPU, memory, CPU, durations, counts and array indexes.

Pure: the standard library's `re` alone. The one strict parser of the CLI, the client and the configuration.
Invariants: resources are integers (milli-GPU, MiB, milli-CPU, ms), so no float is ever involved and nothing
is rounded: a text that does not name a whole number of the unit is refused. Only ASCII digits count, and
every text that `format_*` gives parses back to the same integers. Every refusal is a `QuantityError` that
names the field and says what is accepted.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from gpushare.names import TextError

GPU_MILLI_WHOLE = 1000
MAX_GPUS = 1024  # of one task, which lives on one host
MAX_MEMORY_MIB = 1 << 30  # 1 PiB
MAX_CPU_MILLI = 65_536_000
MAX_DURATION_MS = 3650 * 86_400_000
MAX_ARRAY_INDEX = 999_999_999
MAX_INT32 = (1 << 31) - 1

_MAX_TEXT_CHARS = 64
_WHOLE = re.compile(r"0|[1-9][0-9]*")
_SIGNED = re.compile(r"-?(0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"(0|[1-9][0-9]*)(?:\.([0-9]+))?")
_MEMORY = re.compile(r"(.*?)([A-Za-z]*)", re.DOTALL)
_DURATION = re.compile(r"(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+)s)?(?:([0-9]+)ms)?")
_ONE_DURATION = re.compile(r"(.*?)(ms|s|m|h|d)", re.DOTALL)
_RANGE = re.compile(r"(0|[1-9][0-9]{0,11})(?:-(0|[1-9][0-9]{0,11}))?")

_MIB_PER = {"MiB": 1, "M": 1, "GiB": 1 << 10, "G": 1 << 10, "TiB": 1 << 20, "T": 1 << 20}
_MS_PER = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}

GPUS_ACCEPTED = 'a share of one GPU in steps of 0.001 ("0.25", "25%"), whole GPUs ("1", "2"), or "0" for a CPU job'
MEMORY_ACCEPTED = 'whole MiB with a unit ("12GiB", "12G", "12288MiB", "512M"; G is GiB and M is MiB)'
DURATION_ACCEPTED = 'a time with units d, h, m, s or ms ("90m", "2h", "1h30m", "45s", "1d")'
CPU_ACCEPTED = 'CPUs in steps of 0.001 ("4", "0.5", "500m")'
ARRAY_ACCEPTED = 'indexes and ranges in rising order without repeats ("0-99", "1,3,5-7")'


class QuantityError(TextError):
    """A text that is no such quantity: `field`, `value`, `why` (half a sentence) and `accepted`."""


class ArrayTooLargeError(QuantityError):
    """A well-formed array that has more indexes than the cap allows."""


class GpuAmount(NamedTuple):
    """What one task gets: `gpus` whole cards, or `gpu_milli` (1..999) of one card, or neither (a CPU job)."""

    gpus: int
    gpu_milli: int


def parse_gpus(text: str, field: str = "gpus") -> GpuAmount:
    """A share ("0.25", "25%"), whole cards ("1", "100%", "2"), or exactly "0" for none."""
    if text == "0":
        return GpuAmount(0, 0)
    percent = text.endswith("%")
    digits = text[:-1] if percent else text
    whole, fraction = _decimal(digits, text, field, GPUS_ACCEPTED)
    if not percent and fraction is None:
        return GpuAmount(_bounded(int(whole), text, field, GPUS_ACCEPTED, 1, MAX_GPUS), 0)
    if percent and (int(whole) > 100 or (int(whole) == 100 and (fraction or "").strip("0"))):
        raise QuantityError(field, text, "is above 100%", GPUS_ACCEPTED)
    if not percent and int(whole) >= 1:
        why = "is neither a share below 1 nor a whole number (ask for one task per share instead)"
        raise QuantityError(field, text, why, GPUS_ACCEPTED)
    milli = _scaled(whole, fraction, 10 if percent else 1000)
    if milli is None:
        # Which of the two it is decides what the person has to change.
        tiny = int(whole) == 0 and (fraction or "").startswith("0" if percent else "000")
        why = "is below 0.001 of a GPU" if tiny else "is not a multiple of 0.001"
        raise QuantityError(field, text, why, GPUS_ACCEPTED)
    if milli == 0:
        raise QuantityError(field, text, "is zero", GPUS_ACCEPTED)
    return GpuAmount(1, 0) if milli == GPU_MILLI_WHOLE else GpuAmount(0, milli)


def parse_memory_mib(text: str, field: str = "memory", *, minimum: int = 1, maximum: int = MAX_MEMORY_MIB) -> int:
    """MiB. G and GiB are the same binary unit; GB is refused, because tools differ on what it means."""
    match = _MEMORY.fullmatch(text)
    digits, unit = match.groups() if match else (text, "")
    whole, fraction = _decimal(digits, text, field, MEMORY_ACCEPTED)
    if unit not in _MIB_PER:
        why = "has no unit" if unit == "" else f"has the unknown unit {unit[:8]!r}"
        raise QuantityError(field, text, why, MEMORY_ACCEPTED)
    mib = _scaled(whole, fraction, _MIB_PER[unit])
    if mib is None:
        raise QuantityError(field, text, "is not a whole number of MiB", MEMORY_ACCEPTED)
    return _bounded(mib, text, field, MEMORY_ACCEPTED, minimum, maximum, " MiB")


def parse_duration_ms(text: str, field: str = "time", *, minimum: int = 1, maximum: int = MAX_DURATION_MS) -> int:
    """Milliseconds. Several units go from large to small ("1h30m"); a point needs a single one ("1.5h")."""
    _clean(text, field, DURATION_ACCEPTED)
    match = _DURATION.fullmatch(text)
    if match is not None and text:
        counts = zip(match.groups(), _MS_PER.values(), strict=True)
        ms = sum(int(count) * per for count, per in counts if count)
        return _bounded(ms, text, field, DURATION_ACCEPTED, minimum, maximum, " ms")
    single = _ONE_DURATION.fullmatch(text)
    if single is None:
        why = "has no unit" if _SIGNED.fullmatch(text) else "is no time"
        raise QuantityError(field, text, why, DURATION_ACCEPTED)
    whole, fraction = _decimal(single[1], text, field, DURATION_ACCEPTED)
    exact_ms = _scaled(whole, fraction, _MS_PER[single[2]])
    if exact_ms is None:
        raise QuantityError(field, text, "is not a whole number of milliseconds", DURATION_ACCEPTED)
    return _bounded(exact_ms, text, field, DURATION_ACCEPTED, minimum, maximum, " ms")


def parse_cpu_milli(text: str, field: str = "cpus", *, minimum: int = 1, maximum: int = MAX_CPU_MILLI) -> int:
    """Thousandths of a CPU: "4" is 4000, "0.5" and "500m" are 500."""
    milli_unit = text.endswith("m")
    whole, fraction = _decimal(text[:-1] if milli_unit else text, text, field, CPU_ACCEPTED)
    milli = _scaled(whole, fraction, 1 if milli_unit else 1000)
    if milli is None:
        raise QuantityError(field, text, "is not a multiple of 0.001", CPU_ACCEPTED)
    return _bounded(milli, text, field, CPU_ACCEPTED, minimum, maximum)


def parse_thousandths(text: str, field: str, accepted: str, *, minimum: int = 0, maximum: int = MAX_CPU_MILLI) -> int:
    """ "2.5" is 2500; for what is written in steps of 0.001 and has no unit. `accepted` says so to a person."""
    whole, fraction = _decimal(text, text, field, accepted)
    milli = _scaled(whole, fraction, 1000)
    if milli is None:
        raise QuantityError(field, text, "is not a multiple of 0.001", accepted)
    if not minimum <= milli <= maximum:
        low, high = _thousandths(minimum), _thousandths(maximum)
        raise QuantityError(field, text, f"is not between {low} and {high}", accepted)
    return milli


def parse_int(text: str, field: str, *, minimum: int = 0, maximum: int = MAX_INT32) -> int:
    """A plain integer of ASCII digits; unlike `int()` it takes no space, sign +, underscore, leading zero
    or other script."""
    accepted = f"a whole number from {minimum} to {maximum}"
    _clean(text, field, accepted)
    if _SIGNED.fullmatch(text) is None or text == "-0":
        raise QuantityError(field, text, "is not a whole number", accepted)
    return _bounded(int(text), text, field, accepted, minimum, maximum)


def parse_array(text: str, cap: int, field: str = "array") -> tuple[int, ...]:
    """The indexes of a job array, rising. At most `cap` of them, counted before they are made."""
    if len(text) > 24 * max(cap, 1):
        raise ArrayTooLargeError(field, text, f"has more than {cap} indexes", ARRAY_ACCEPTED)
    spans: list[tuple[int, int]] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise QuantityError(field, text, f"has {part[:24]!a}, which is no index or range", ARRAY_ACCEPTED)
        first, last = int(match[1]), int(match[2] or match[1])
        if last > MAX_ARRAY_INDEX:
            raise QuantityError(field, text, f"has an index above {MAX_ARRAY_INDEX}", ARRAY_ACCEPTED)
        if first > last or (spans and first <= spans[-1][1]):
            raise QuantityError(field, text, f"is out of order at {part!r}", ARRAY_ACCEPTED)
        spans.append((first, last))
    count = sum(last - first + 1 for first, last in spans)
    if count > cap:
        raise ArrayTooLargeError(field, text, f"has {count} indexes, above the cap of {cap}", ARRAY_ACCEPTED)
    return tuple(index for first, last in spans for index in range(first, last + 1))


def format_gpus(gpus: int, gpu_milli: int) -> str:
    """ "2" for whole cards, "0.25" for a share, "0" for a CPU job."""
    if gpus or not gpu_milli:
        return str(gpus)
    return _thousandths(gpu_milli)


def format_memory_mib(memory_mib: int) -> str:
    """The largest unit that is exact: "12GiB", "46068MiB"."""
    for unit in ("TiB", "GiB"):
        if memory_mib and memory_mib % _MIB_PER[unit] == 0:
            return f"{memory_mib // _MIB_PER[unit]}{unit}"
    return f"{memory_mib}MiB"


def format_duration_ms(duration_ms: int) -> str:
    """ "1h30m", "45s", "1d", "250ms"; exact, so that it parses back. Nothing is "0s"."""
    parts: list[str] = ["-"] if duration_ms < 0 else []
    rest = abs(duration_ms)
    for unit, per in _MS_PER.items():
        count, rest = divmod(rest, per)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def format_cpu_milli(cpu_milli: int) -> str:
    """ "4", "0.5"."""
    return _thousandths(cpu_milli)


def _thousandths(milli: int) -> str:
    sign = "-" if milli < 0 else ""
    whole, rest = divmod(abs(milli), 1000)
    return f"{sign}{whole}.{rest:03d}".rstrip("0").rstrip(".") if rest else f"{sign}{whole}"


def _decimal(digits: str, text: str, field: str, accepted: str) -> tuple[str, str | None]:
    """The digits before and after the point, or a refusal that names the first thing that is wrong with
    `text`."""
    _clean(text, field, accepted)
    match = _DECIMAL.fullmatch(digits)
    if match is None:
        raise QuantityError(field, text, _why_not_number(digits), accepted)
    return match[1], match[2]


def _clean(text: str, field: str, accepted: str) -> None:
    if len(text) > _MAX_TEXT_CHARS:
        raise QuantityError(field, text, f"has {len(text)} characters", accepted)
    if not text.isascii():
        raise QuantityError(field, text, "has a character outside ASCII", accepted)


def _why_not_number(digits: str) -> str:
    if digits == "":
        return "has no number"
    if any(char.isspace() for char in digits):
        return "has a space"
    if "_" in digits:
        return "has an underscore"
    if digits.startswith("-"):
        return "is negative"
    if re.fullmatch(r"[0-9.]+[eE][-+]?[0-9]+", digits):
        return "has an exponent"
    if digits.startswith(".") or digits.endswith("."):
        return "needs a digit on both sides of the point"
    if re.fullmatch(r"0[0-9.]+", digits):
        return "has a leading zero"
    return "is not a number"


def _scaled(whole: str, fraction: str | None, per_unit: int) -> int | None:
    """whole.fraction x per_unit as an exact integer, or None where it is not one."""
    places = len(fraction or "")
    scaled, rest = divmod(int(whole + (fraction or "")) * per_unit, 10**places)
    return scaled if rest == 0 else None


def _bounded(value: int, text: str, field: str, accepted: str, minimum: int, maximum: int, unit: str = "") -> int:
    if value < minimum:
        why = "is zero" if value == 0 else f"is below {minimum}{unit}"
        raise QuantityError(field, text, why, accepted)
    if value > maximum:
        raise QuantityError(field, text, f"is above {maximum}{unit}", accepted)
    return value
