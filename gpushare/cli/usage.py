"""`gpushare usage` and `gpushare audit`: who used what, and who did what.

Imports click; the client only when a command runs.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from gpushare.cli.options import JSON, WIDE, not_empty, output_option
from gpushare.cli.session import with_client

if TYPE_CHECKING:
    from gpushare.client.aio import AsyncClient
    from gpushare.client.messages import AuditEvent

_AUDIT_LIMIT = 100
_AUDIT_COLUMNS = ("SEQ", "TIME", "USER", "ROLE", "TENANT", "WHAT", "SUBJECT")


@click.command()
@click.option("--by", type=click.Choice(["tenant", "user", "job"]), default="tenant", help="One line each (tenant).")
@click.option("--tenant", default="", metavar="T", callback=not_empty, help="Of this tenant alone.")
@output_option
@with_client
async def usage(client: AsyncClient, by: str, tenant: str, output: str) -> None:
    """Who used how much: the part of a card that nobody else could have, times seconds, from allocation to end."""
    from gpushare.cli.output import charge_seconds, print_json, short_name
    from gpushare.cli.table import print_table

    answer = await client.get_usage(f"USAGE_GROUP_{by.upper()}", tenant=tenant)
    if output == JSON:
        print_json(answer)
        return
    names = {"tenant": ["TENANT"], "user": ["TENANT", "USER"], "job": ["TENANT", "USER", "JOB"]}[by]
    rows = [
        [
            *(short_name(getattr(row, name.lower())) for name in names),
            charge_seconds(row.charge_milli_seconds),
            row.attempts,
        ]
        for row in answer.rows
    ]
    print_table([*names, "CARD-SECONDS", "ATTEMPTS"], rows)


@click.command()
@click.option("--denials", is_flag=True, help="Refused calls in place of events.")
@click.option("--user", default="", metavar="U", callback=not_empty, help="By this user.")
@click.option("--tenant", default="", metavar="T", callback=not_empty, help="By members of this tenant.")
@click.option("--kind", default="", metavar="KIND", help="Events of this kind alone, e.g. JobsCreated.")
@click.option("--limit", metavar="N", help=f"At most so many, the newest ({_AUDIT_LIMIT}).")
@output_option
@with_client
async def audit(
    client: AsyncClient, denials: bool, user: str, tenant: str, kind: str, limit: str | None, output: str
) -> None:
    """Who did what, newest first (admin)."""
    from gpushare.cli.output import print_json_list, time_text
    from gpushare.cli.table import print_table
    from gpushare.quantity import parse_int

    count = parse_int(limit, "limit", minimum=1) if limit is not None else _AUDIT_LIMIT
    events = []
    listing = client.list_audit_events(user=user, tenant=tenant, kind=kind, denials=denials, page_size=min(count, 500))
    async for event in listing:
        events.append(event)
        if len(events) == count:
            break
    await listing.aclose()
    if output == JSON:
        print_json_list("events", events)
        return
    columns = [*_AUDIT_COLUMNS]
    if denials:
        columns += ["REASON", "WHY"]
    if output == WIDE:
        columns += ["REQUEST ID", "DETAIL"]
    rows = []
    for event in events:
        cells = [
            event.sequence or "",
            time_text(event, "time"),
            event.principal.user,
            event.principal.role,
            event.principal.tenant,
            event.kind,
            _subject_text(event),
        ]
        if denials:
            cells += [event.reason, _details(event).get("detail", "")]
        if output == WIDE:
            cells += [event.request_id, event.detail_json]
        rows.append(cells)
    print_table(columns, rows)


def _subject_text(event: AuditEvent) -> str:
    """What it was about; of a login also whose, of a connection also what kind and to what."""
    from gpushare.cli.output import short_name

    name = short_name(event.subject)
    said = _details(event)
    if event.kind == "LoginTokenIssued":
        return f"{name} for {said.get('principal', {}).get('user', '')}"
    if event.kind == "ConnectionOpened":
        return " ".join(word for word in (name, said.get("connection", ""), said.get("target", "")) if word)
    return name


def _details(event: AuditEvent) -> dict[str, Any]:
    said = json.loads(event.detail_json or "{}")
    return said if isinstance(said, dict) else {}
