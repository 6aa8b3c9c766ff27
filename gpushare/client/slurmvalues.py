"""Values as Slurm writes them -> values as `gpushare submit` takes them.

Imports the names' rules, the quantities and the client's cap of an array. Invariant: what comes out means what the text
meant there; where it cannot, a SlurmValueError says what to write instead. Numbers out of range are left to the parser
of the option that they become.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from gpushare.client.spec import MAX_ARRAY_INDEXES
from gpushare.names import NAME_MAX_CHARS, TextError, check_job_name, shown
from gpushare.quantity import format_duration_ms

_COUNT = re.compile(r"[0-9]{1,9}")
_MINUTES = re.compile(r"([0-9]{1,9})(?::([0-9]{1,9}))?")
_HOURS = re.compile(r"([0-9]{1,9}):([0-9]{1,9}):([0-9]{1,9})")
_DAYS = re.compile(r"([0-9]{1,9})-([0-9]{1,9})(?::([0-9]{1,9}))?(?::([0-9]{1,9}))?")
_MEMORY = re.compile(r"([0-9]{1,12})([KMGT]?)B?", re.IGNORECASE)
_SPAN = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9})(?::([0-9]{1,9}))?)?")
_GPU_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9._+-]*")
_NOT_IN_NAMES = re.compile(r"[^a-z0-9]+")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_KIB_PER = {"K": 1, "M": 1 << 10, "": 1 << 10, "G": 1 << 20, "T": 1 << 30}
_AFTER = {"after": "after", "afterok": "after-ok", "afterany": "after-any"}

Pairs = list[tuple[str, str]]


class SlurmValueError(ValueError):
    """Half a sentence: what is wrong with the value, and what to write."""


def count(text: str) -> int:
    if _COUNT.fullmatch(text) is None:
        raise SlurmValueError(f"{text!a} is not a whole number")
    return int(text)


def job_name(text: str) -> Pairs:
    try:
        return [("name", check_job_name(text))]
    except TextError as err:
        wanted = f"job-{text}" if text.isdecimal() else text.lower()
        near = _NOT_IN_NAMES.sub("-", wanted).strip("-")[:NAME_MAX_CHARS].strip("-")
        instead = f"; write --job-name={near}" if near else ""
        raise SlurmValueError(f"{shown(text)}: {err.why}; accepted: {err.accepted}{instead}") from err


def time(text: str) -> Pairs:
    """minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]]; no limit is no option."""
    if text.lower() in ("0", "infinite", "unlimited"):
        return []
    if (found := _MINUTES.fullmatch(text)) is not None:
        minutes, seconds = (int(part or 0) for part in found.groups())
        total_s = minutes * 60 + seconds
    elif (found := _HOURS.fullmatch(text)) is not None:
        hours, minutes, seconds = (int(part) for part in found.groups())
        total_s = hours * 3600 + minutes * 60 + seconds
    elif (found := _DAYS.fullmatch(text)) is not None:
        days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
        total_s = days * 86_400 + hours * 3600 + minutes * 60 + seconds
    else:
        raise SlurmValueError(
            f"{text!a} is no time; write minutes, minutes:seconds, hours:minutes:seconds, or days-hours:minutes:seconds"
        )
    return [("time", format_duration_ms(total_s * 1000))]


def memory_mib(text: str) -> int:
    """A number without a unit is MiB, as there; all units are powers of 1024."""
    found = _MEMORY.fullmatch(text)
    if found is None:
        raise SlurmValueError(f"{text!a} is no amount of memory; write a whole number with K, M (the default), G or T")
    mib, rest = divmod(int(found[1]) * _KIB_PER[found[2].upper()], 1024)
    if rest:
        raise SlurmValueError(f"{text!a} is not a whole number of MiB")
    if not mib:
        raise SlurmValueError("0 means all memory of a node there; write how much the job needs")
    return mib


def array(text: str) -> Pairs:
    """ "0-15%4", "0-10:2", "1,3,5-7" in any order."""
    spans, percent, at_once = text.partition("%")
    wanted: set[int] = set()
    for part in spans.split(","):
        found = _SPAN.fullmatch(part)
        if found is None:
            raise SlurmValueError(f"{part!a} is no index or range; write 0-15, 0-15%4, 0-10:2 or 1,3,5-7")
        first, last, step = int(found[1]), int(found[2] or found[1]), int(found[3] or 1)
        if last < first or not step:
            raise SlurmValueError(f"the range {part!a} is empty")
        if len(wanted) + (last - first) // step >= MAX_ARRAY_INDEXES:
            raise SlurmValueError(f"it has more than {MAX_ARRAY_INDEXES} indexes; split it into several arrays")
        wanted.update(range(first, last + 1, step))
    return [("array", f"{_spans(sorted(wanted))}{percent}{at_once}")]


def _spans(indexes: Iterable[int]) -> str:
    spans: list[list[int]] = []
    for index in indexes:
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def gpus(text: str) -> tuple[str, int]:
    """ "2" or "h100:2" -> (type or "", count)."""
    kind, _, number = text.rpartition(":")
    if _GPU_TYPE.fullmatch(number):
        kind, number = text, "1"  # a type alone is one card of it
    if _COUNT.fullmatch(number) is None or (kind and _GPU_TYPE.fullmatch(kind) is None):
        raise SlurmValueError(f"{text!a} is no number of GPUs; write 2, or TYPE:2 for cards of one type")
    return kind, int(number)


def gres(text: str) -> tuple[str, int]:
    """ "gpu", "gpu:2", "gpu:h100", "gpu:h100:2"."""
    name, _, rest = text.partition(":")
    if "," in text:
        raise SlurmValueError(f"{text!a} names several resources; a job of gpushare has cards of one kind")
    if name in ("shard", "mps"):
        raise SlurmValueError(f"there is no {name!a}; write #GPUSHARE --gpus 0.25 for a quarter of a card")
    if name != "gpu":
        raise SlurmValueError(f"gpushare knows no resource {name!a}; write gpu, gpu:2 or gpu:TYPE:2")
    return gpus(rest) if rest else ("", 1)


def dependency(text: str) -> Pairs:
    """ "afterok:12:13,afterany:14"; all of them must hold."""
    if "?" in text:
        raise SlurmValueError("? (any of them) is not to be had; all must hold, separated by commas")
    pairs: Pairs = []
    for part in text.split(","):
        kind, *jobs = part.split(":")
        if kind not in _AFTER:
            raise SlurmValueError(f"{kind!a} is not to be had; write after:, afterok: or afterany: and jobs")
        if not jobs or not all(jobs):
            raise SlurmValueError(f"{part!a} names no job; write {kind}:JOB")
        if any("+" in job for job in jobs):
            raise SlurmValueError(f"{part!a} asks for a delay, which is not to be had; leave the + out")
        pairs += [(_AFTER[kind], job) for job in jobs]
    return pairs


def export(text: str) -> Pairs:
    """ALL, NONE, names, and names with values; several with commas."""
    words = text.split(",")
    if text in ("ALL", "NONE"):
        return [("export", text.lower())]
    if "NONE" in words or "NIL" in words:
        raise SlurmValueError("NONE stands alone, and NIL is not to be had; write ALL, NONE, or names: A,B=1")
    for word in words:
        if _ENV_NAME.fullmatch(word.partition("=")[0]) is None:
            raise SlurmValueError(f"{word!a} is no variable; write ALL, NONE, or names: A,B=1")
    names = [word for word in words if "=" not in word and word != "ALL"]
    taken = "all" if "ALL" in words else ",".join(names) or "none"
    return [("export", taken), *(("env", word) for word in words if "=" in word)]
