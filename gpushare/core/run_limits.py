"""How long a job may run and how it wants to end: its tenant's default and cap, its early signal, its requeue codes.

Pure. What is refused here is a TextError, or half a sentence for the caller's Rejection. The cap of a tenant is the
smallest that it or a tenant above it has; an admin of the cluster alone may pass it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from gpushare.core.kinds import Role
from gpushare.core.model import EarlySignal, Principal, Tenant
from gpushare.core.tenant_tree import path
from gpushare.names import TextError
from gpushare.quantity import format_duration_ms

# What a program can act on; each has the same name everywhere.
EARLY_SIGNALS: Final = ("USR1", "USR2", "HUP", "INT", "QUIT", "TERM", "ALRM", "CONT")
_CODES_MAX = 16
_CODES_ACCEPTED = f"up to {_CODES_MAX} codes from 1 to 255, each once"
_SIGNALS_ACCEPTED = ", ".join(EARLY_SIGNALS)


class RunLimits(NamedTuple):
    """In ms; 0: none. `capped_by` is the tenant whose cap counts."""

    default_ms: int = 0
    cap_ms: int = 0
    capped_by: str = ""

    @property
    def unasked_ms(self) -> int:
        """The limit of a job that names none."""
        return min(self.default_ms or self.cap_ms, self.cap_ms or self.default_ms)


def run_limits(tenants: Mapping[str, Tenant], tenant: str) -> RunLimits:
    """Of the jobs of `tenant`, which exists."""
    caps = [(most, name) for name in path(tenants, tenant) if (most := tenants[name].settings.max_run_ms) is not None]
    return RunLimits(tenants[tenant].settings.default_run_ms or 0, *min(caps, default=(0, "")))


def above_cap(run_ms: int, limits: RunLimits, who: Principal) -> str:
    """Why `who` may not give a job so long; "" when they may."""
    if not limits.cap_ms or run_ms <= limits.cap_ms or who.role is Role.ADMIN:
        return ""
    cap = format_duration_ms(limits.cap_ms)
    return f"{format_duration_ms(run_ms)} is above {cap}, the longest that jobs of tenant {limits.capped_by} may run"


def check_early_signal(asked: EarlySignal | None, max_run_ms: int) -> EarlySignal | None:
    """With the signal's plain name. Raises TextError; `max_run_ms` 0 is no limit."""
    if asked is None:
        return None
    field = "early_signal"
    name = asked.signal.removeprefix("SIG")
    if name not in EARLY_SIGNALS:
        raise TextError(field, asked.signal, "is no signal that a job can be sent early", _SIGNALS_ACCEPTED)
    told = f"{name}@{format_duration_ms(asked.before_ms)}"
    if not max_run_ms:
        why = "comes before the end of a time limit, and the job has none"
        raise TextError(field, told, why, "an early signal together with a time limit (--time)")
    if not 0 < asked.before_ms < max_run_ms:
        limit = format_duration_ms(max_run_ms)
        raise TextError(field, told, "is not within the time limit", f"less than {limit} before it, and more than 0")
    return EarlySignal(name, asked.before_ms, asked.target)


def check_requeue_codes(codes: tuple[int, ...]) -> tuple[int, ...]:
    """Sorted, so that equal jobs are equal. Raises TextError."""
    if not codes:
        return ()
    if len(codes) > _CODES_MAX or len(set(codes)) != len(codes) or not all(1 <= code <= 255 for code in codes):
        told = ",".join(map(str, codes[: _CODES_MAX + 1]))
        raise TextError("requeue_exit_codes", told, "are no exit codes to be queued again by", _CODES_ACCEPTED)
    return tuple(sorted(codes))
