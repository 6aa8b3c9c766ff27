"""What the check found, what may run, and the result file. Pure: no card, no clock, no process.

A step ends as one `Outcome`: measured, absent with a reason, or failed with a reason. A measured step holds figures and
claims: sentences that gpushare's design rests on, and whether this card bears them out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

Figure = str | int | float | bool | None

#: Memory in use on a card with no process listed: more than this is held by somebody NVML does not show.
HIDDEN_MIB_MAX = 512
PROCESS_LISTS = ("compute", "graphics", "mps")


class AbsentError(Exception):
    """A step cannot run here; the text says why."""


@dataclass(frozen=True)
class Claim:
    """One sentence of the design, and what was seen of it."""

    text: str
    holds: bool
    seen: str


@dataclass
class Findings:
    """What one step measured."""

    figures: dict[str, Figure] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)

    def figure(self, name: str, value: Figure) -> None:
        self.figures[name] = round(value, 4) if isinstance(value, float) else value

    def claim(self, text: str, holds: bool, seen: object) -> None:
        self.claims.append(Claim(text, holds, str(seen)))


@dataclass(frozen=True)
class Outcome:
    """How a step ended: `state` is "measured", "absent" or "failed"; `why` is empty for a measured one."""

    key: str
    title: str
    state: str
    why: str
    seconds: float
    findings: Findings

    @property
    def differing(self) -> list[Claim]:
        return [claim for claim in self.findings.claims if not claim.holds]


@dataclass(frozen=True)
class Heading:
    """Where and how the check ran."""

    date: str
    command: str
    card: str
    uuid: str
    driver: str
    cuda: str
    host: str


def why_not(needs_s: float, left_s: float, missing: str) -> str | None:
    """Why a step may not run, or None. `missing` says what it needs and does not find, "" if nothing."""
    if missing:
        return missing
    if left_s < needs_s:
        return f"out of time: {left_s:.0f} s are left and the step may take {needs_s:.0f} s"
    return None


def others_on_card(card: Mapping[str, object], own_pids: Collection[int]) -> str | None:
    """Who besides ourselves uses the card, in words; None where nobody does.

    `card` is a card of `nvmlread`: process lists (None where NVML does not give one), `used_mib`.
    """
    seen: dict[int, object] = {}
    for name in PROCESS_LISTS:
        rows = card.get(name)
        if not isinstance(rows, list):
            if name == "compute":
                return "NVML gives no list of processes, so it cannot be known that the card is ours alone"
            continue
        seen.update({row["pid"]: row["mib"] for row in rows})
    foreign = {pid: mib for pid, mib in seen.items() if pid not in own_pids}
    if foreign:
        pid, mib = next(iter(foreign.items()))
        held = "an unknown amount" if mib is None else f"{mib} MiB"
        return f"{len(foreign)} foreign process(es) on the card, such as pid {pid} with {held}"
    used = card.get("used_mib")
    if not seen and isinstance(used, int) and used > HIDDEN_MIB_MAX:
        return f"{used} MiB of the card are in use by processes that NVML does not show"
    return None


def markdown(heading: Heading, outcomes: Sequence[Outcome]) -> str:
    """The result file."""
    lines = [
        f"# GPU check: {heading.card}, driver {heading.driver}",
        "",
        f"- date: {heading.date}",
        f"- command: `{heading.command}`",
        f"- card: {heading.card}, {heading.uuid}",
        f"- driver: {heading.driver}, CUDA {heading.cuda}",
        f"- host: {heading.host}",
        "",
        "No setting of the card was changed.",
        "",
        "| step | result | seconds |",
        "|---|---|---|",
        *(f"| {o.key}) {o.title} | {_cell(summary(o))} | {o.seconds:.1f} |" for o in outcomes),
        "",
        "## What this card contradicts",
        "",
        *(_contradictions(outcomes) or ["Nothing."]),
    ]
    for outcome in outcomes:
        if outcome.state == "measured" or outcome.findings.figures or outcome.findings.claims:
            lines += ["", f"## {outcome.key}) {outcome.title}", ""]
            lines += [f"- {name}: {_shown(value)}" for name, value in outcome.findings.figures.items()]
            lines += [
                f"- {'holds' if c.holds else '**differs**'}: {c.text} (seen: {c.seen})" for c in outcome.findings.claims
            ]
    return "\n".join(lines) + "\n"


def summary(outcome: Outcome) -> str:
    """A step's result in a few words."""
    if outcome.state != "measured":
        return f"{outcome.state}: {outcome.why}"
    claims = len(outcome.findings.claims)
    if claims == 0:
        return "measured"
    return f"measured, {claims - len(outcome.differing)} of {claims} expectations hold"


def file_name(stamp: str, card: str) -> str:
    """`gpu-check-20261122-1530-nvidia-h200.md` from a stamp and the card's name."""
    return f"gpu-check-{stamp}-{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-') or 'card'}.md"


def _contradictions(outcomes: Sequence[Outcome]) -> list[str]:
    return [f"- {o.key}) {claim.text}: seen {claim.seen}" for o in outcomes for claim in o.differing]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _shown(value: Figure) -> str:
    if isinstance(value, str):
        return value.replace("\n", " / ")
    return "none" if value is None else str(value)
