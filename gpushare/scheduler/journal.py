"""Entries of the core <-> records of the store, and what an event is about.

Imports msgspec, the core and the store's port. The payload is JSON with the whole principal, so that replay restores
who did what; the record's columns repeat what an audit filters by, and name the tenant that the event concerns.
"""

from __future__ import annotations

import msgspec

from gpushare.core.events import (
    AnyEvent,
    AttemptChanged,
    AttemptEnded,
    AttemptStopRequested,
    ConnectionOpened,
    Entry,
    Event,
    JobsArchived,
    JobsCreated,
    JoinTokenCreated,
    LoginTokenIssued,
    RequestCompleted,
    ReservationCreated,
    ReservationDeleted,
    TokensForgotten,
)
from gpushare.core.model import Job, Principal, attempt_parts
from gpushare.store.port import HistoryRow, Record


class _Payload(msgspec.Struct, frozen=True):
    by: Principal
    event: AnyEvent


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Payload).decode
_decode_job = msgspec.json.Decoder(Job).decode


def to_record(entry: Entry) -> Record:
    """The store's form of one applied entry."""
    tenant, _ = about(entry.event)
    return Record(
        seq=entry.seq,
        at_ms=entry.at_ms,
        term=entry.term,
        kind=entry.event.kind,
        tenant=tenant or entry.principal.tenant,
        user=entry.principal.user,
        role=entry.principal.role,
        request_id=entry.request_id,
        payload=_encode(_Payload(entry.principal, entry.event)),
    )


def from_record(record: Record) -> Entry:
    """Raises msgspec.ValidationError for a payload that no version of this program wrote."""
    payload = _decode(record.payload)
    return Entry(
        seq=record.seq,
        at_ms=record.at_ms,
        term=record.term,
        event=payload.event,
        principal=payload.by,
        request_id=record.request_id,
    )


def history_row(job: Job) -> HistoryRow:
    """An ended job on its way out of memory."""
    return HistoryRow(
        tenant=job.tenant,
        job=job.id,
        created_ms=job.created_ms,
        ended_ms=job.ended_ms or 0,
        user=job.created_by.user,
        state=job.state,
        blob=_encode(job),
    )


def job_from_history(row: HistoryRow) -> Job:
    return _decode_job(row.blob)


def about(event: Event) -> tuple[str, str]:
    """(tenant, resource name) that an event concerns; either may be empty."""
    if isinstance(event, JobsCreated):
        return event.tenant, f"tenants/{event.tenant}/jobs/{event.number}"
    if isinstance(event, (AttemptChanged, AttemptEnded, AttemptStopRequested)):
        parts = attempt_parts(event.attempt)
        return _job(parts[0]) if parts else ("", event.attempt)
    if isinstance(event, JobsArchived):
        return "", f"{len(event.jobs)} jobs"
    if isinstance(event, RequestCompleted):
        return "", ", ".join(event.names[:3])
    if isinstance(event, LoginTokenIssued):
        return event.principal.tenant, f"tokens/{event.token_id}"
    if isinstance(event, TokensForgotten):
        return "", f"{len(event.token_ids)} tokens"
    if isinstance(event, JoinTokenCreated):
        return "", f"nodes/{event.join.node}"
    if isinstance(event, ReservationCreated):
        return event.reservation.tenant, f"reservations/{event.reservation.name}"
    if isinstance(event, ReservationDeleted):
        return "", f"reservations/{event.name}"
    for field, form in (("job", ""), ("tenant", "tenants/{}"), ("node", "nodes/{}"), ("token_id", "tokens/{}")):
        value = getattr(event, field, None)
        if isinstance(value, str):
            return _job(value) if field == "job" else (value if field == "tenant" else "", form.format(value))
    return "", ""


def _job(key: str) -> tuple[str, str]:
    tenant, _, job_id = key.partition("/")
    return tenant, f"tenants/{tenant}/jobs/{job_id}"


def jobs_touched(event: Event) -> tuple[str, ...]:
    """Keys of the jobs that look different after `event`; archived ones do not."""
    if isinstance(event, ConnectionOpened):
        return ()
    if isinstance(event, JobsCreated):
        return tuple(f"{event.tenant}/{job_id}" for job_id in event.ids())
    if isinstance(event, (AttemptChanged, AttemptEnded, AttemptStopRequested)):
        parts = attempt_parts(event.attempt)
        return (parts[0],) if parts else ()
    key = getattr(event, "job", None)
    return (key,) if isinstance(key, str) else ()
