"""From the store back to a state: the newest snapshot, then every later entry.

Runs in the writer thread while nothing leads. Replay applies outcomes and runs no policy, so an old journal gives the
same state under any later version of the policy.
"""

from __future__ import annotations

import msgspec

from gpushare.core.events import (
    AttemptEnded,
    GpuConditionsChanged,
    HoldReleased,
    JobEnded,
    JobExtended,
    JobRequeued,
    JobsCreated,
    NodeCordoned,
    NodeDisconnected,
    NodeOvercommitted,
    NodePowerRequested,
    NodeSilent,
    NodeSynced,
    NodeUncordoned,
    ReservationCreated,
    ReservationDeleted,
    TenantUpdated,
)
from gpushare.core.state import ClusterState, OtherVersion
from gpushare.scheduler.journal import from_record
from gpushare.store.port import Store, StoreDamaged

_PAGE = 10_000

# What may let a queued job start, or change the reason why it does not.
WAKES_PASS = (
    AttemptEnded,
    GpuConditionsChanged,
    HoldReleased,
    JobEnded,
    JobExtended,
    JobRequeued,
    JobsCreated,
    NodeCordoned,
    NodeDisconnected,
    NodeOvercommitted,
    NodePowerRequested,
    NodeSilent,
    NodeSynced,
    NodeUncordoned,
    ReservationCreated,
    ReservationDeleted,
    TenantUpdated,
)


def load_state(store: Store) -> ClusterState:
    """Raises StoreDamaged for a record or snapshot that cannot be read, BrokenInvariant for a journal that contradicts
    itself."""
    found = store.load_snapshot()
    try:
        state = ClusterState.decode(found[1]) if found else ClusterState()
    except OtherVersion:
        # Written before an upgrade: the journal was never pruned, so replaying all of it gives the same state.
        state = ClusterState()
    except msgspec.MsgspecError as err:
        raise StoreDamaged(f"the snapshot at {found[0] if found else 0} cannot be read: {err}") from err
    while records := store.read(state.seq, _PAGE):
        for record in records:
            try:
                entry = from_record(record)
            except msgspec.MsgspecError as err:
                raise StoreDamaged(
                    f"journal record {record.seq} ({record.kind}) cannot be read: {err}; it was written by a newer "
                    "version, or the file is damaged: start that version, or restore a backup"
                ) from err
            state.apply(entry)
    return state
