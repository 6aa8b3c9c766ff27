"""What each fact about tenants, tokens, nodes and reservations changes: the first half of `state.apply`.

Pure. A handler raises BrokenInvariant when its fact cannot follow from the present state; no policy runs here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from gpushare.core import ledger
from gpushare.core.events import (
    Entry,
    GpuConditionsChanged,
    JoinTokenCreated,
    LoginTokenIssued,
    NodeCordoned,
    NodeDeclaredDead,
    NodeDisconnected,
    NodeEnrolled,
    NodeOvercommitted,
    NodePowerRequested,
    NodeSilent,
    NodeSynced,
    NodeTrustChanged,
    NodeUncordoned,
    RequestCompleted,
    RequestsForgotten,
    ReservationCreated,
    ReservationDeleted,
    TenantCreated,
    TenantDeleted,
    TenantUpdated,
    TermStarted,
    TokenCreated,
    TokenRevoked,
    TokensForgotten,
)
from gpushare.core.kinds import AttemptState, NodeState, Power, Role
from gpushare.core.lifecycle import BrokenInvariant, check_attempt_move
from gpushare.core.model import Gpu, GpuCondition, GpuInventory, Node, Principal, RequestRecord, Tenant, Token

REQUEST_RETENTION_MS = 24 * 3600 * 1000

if TYPE_CHECKING:
    from gpushare.core.state import ClusterState


# -- tenants, tokens, requests


def _term_started(state: ClusterState, event: TermStarted, entry: Entry) -> None:
    for name in state.nodes:
        state.own_node(name).ready = False
    for name in state.nodes:
        state.touch(name)
    for tenant in state.tenants.values():
        for account in (tenant.account, *(p.account for p in tenant.people.values())):
            ledger.settle(account, entry.at_ms, state.half_life_ms)
    state.half_life_ms = event.half_life_ms


def _tenant_created(state: ClusterState, event: TenantCreated, entry: Entry) -> None:
    if event.tenant in state.tenants:
        raise BrokenInvariant(f"tenant {event.tenant} exists, or is a tombstone")
    state.tenants[event.tenant] = Tenant(name=event.tenant, created_ms=entry.at_ms, settings=event.settings)


def _tenant_updated(state: ClusterState, event: TenantUpdated, entry: Entry) -> None:
    state.tenants[event.tenant].settings = event.settings


def _tenant_deleted(state: ClusterState, event: TenantDeleted, entry: Entry) -> None:
    tenant = state.tenants[event.tenant]
    if tenant.queued_jobs or tenant.running_jobs:
        raise BrokenInvariant(f"tenant {event.tenant} still has jobs")
    tenant.deleted = True
    for token in state.tokens.values():
        if token.principal.tenant == event.tenant and not token.revoked_ms:
            token.revoked_ms = entry.at_ms


def _token_created(state: ClusterState, event: TokenCreated, entry: Entry) -> None:
    state.add_token(
        Token(
            id=event.token_id,
            sha256=event.sha256,
            principal=event.principal,
            created_ms=entry.at_ms,
            expires_ms=event.expires_ms,
        )
    )


def _token_revoked(state: ClusterState, event: TokenRevoked, entry: Entry) -> None:
    state.tokens[event.token_id].revoked_ms = entry.at_ms


def _login_token_issued(state: ClusterState, event: LoginTokenIssued, entry: Entry) -> None:
    state.add_token(
        Token(
            id=event.token_id,
            sha256=event.sha256,
            principal=event.principal,
            created_ms=entry.at_ms,
            expires_ms=event.expires_ms,
            login_node=event.node,
        )
    )


def _tokens_forgotten(state: ClusterState, event: TokensForgotten, entry: Entry) -> None:
    for token_id in event.token_ids:
        del state.tokens_by_sha[state.tokens.pop(token_id).sha256]


def _join_token_created(state: ClusterState, event: JoinTokenCreated, entry: Entry) -> None:
    state.join_tokens[event.join.sha256] = event.join
    for sha in [k for k, v in state.join_tokens.items() if v.expires_ms < entry.at_ms]:
        del state.join_tokens[sha]


def _request_completed(state: ClusterState, event: RequestCompleted, entry: Entry) -> None:
    expires_ms = 0 if event.jobs else entry.at_ms + REQUEST_RETENTION_MS
    state.requests[event.key] = RequestRecord(
        key=event.key,
        method=event.method,
        body_sha256=event.body_sha256,
        names=event.names,
        open_jobs=event.jobs,
        expires_ms=expires_ms,
    )


def _requests_forgotten(state: ClusterState, event: RequestsForgotten, entry: Entry) -> None:
    for key in event.keys:
        del state.requests[key]


# -- nodes


def _node_enrolled(state: ClusterState, event: NodeEnrolled, entry: Entry) -> None:
    del state.join_tokens[event.join_sha256]
    for token in state.tokens.values():
        if token.principal.node == event.node and not token.revoked_ms:
            token.revoked_ms = entry.at_ms
    principal = Principal(user=event.node, role=Role.AGENT, node=event.node)
    state.add_token(Token(id=event.token_id, sha256=event.token_sha256, principal=principal, created_ms=entry.at_ms))
    state.nodes.setdefault(event.node, Node(name=event.node, created_ms=entry.at_ms))
    node = state.own_node(event.node)
    node.instance_id = event.instance_id
    node.start_counter = 0


def _node_synced(state: ClusterState, event: NodeSynced, entry: Entry) -> None:
    node = state.own_node(event.node)
    state.touch(event.node)
    node.address, node.warnings = event.address, event.warnings
    if node.shared_paths != event.shared_paths:
        node.shared_paths = event.shared_paths
        state.index_shared_paths()
    _wake(state, node, event, entry.at_ms)
    node.instance_id, node.boot_id, node.start_counter = event.instance_id, event.boot_id, event.start_counter
    node.agent_version, node.driver_version = event.agent_version, event.driver_version
    node.cpu_milli, node.memory_mib, node.labels = event.cpu_milli, event.memory_mib, event.labels
    node.containment, node.last_seen_ms, node.ready = event.containment, entry.at_ms, True
    if node.state in (NodeState.UNREACHABLE, NodeState.LOST):
        node.state = NodeState.DRAINING if node.drain else NodeState.ACTIVE
    for attempt in state.live_attempts(node):
        if attempt.state is AttemptState.UNKNOWN and not attempt.seen:
            # Its order may never have arrived: it is sent again.
            state.own_attempt(attempt.id).state = AttemptState.ALLOCATED
    for other in list(state.nodes.values()):
        if other is not node and other.state is NodeState.LOST:
            # A card that was moved over from a dead host.
            for card in event.gpus:
                if card.uuid in other.gpus:
                    state.own_node(other.name).gpus.pop(card.uuid, None)
                    state.touch(other.name)
    _register_cards(node, event.gpus)


def _wake(state: ClusterState, node: Node, event: NodeSynced, at_ms: int) -> None:
    """An agent that syncs is proof that its host is up. One that was told to sleep and has never gone is on its way
    down; it stays asleep, so that nothing starts there."""
    same = (node.boot_id, node.start_counter) == (event.boot_id, event.start_counter)
    if node.power is Power.DOWN and same:
        return
    if not node.attempts and (node.power is not Power.ON or not node.idle_since_ms):
        node.idle_since_ms = at_ms
    if node.power is not Power.ON:
        _set_power(state, node, Power.ON, at_ms, "")


def _set_power(state: ClusterState, node: Node, power: Power, at_ms: int, detail: str) -> None:
    node.power, node.power_since_ms, node.power_detail = power, at_ms, detail
    if power is Power.ON:
        state.asleep.discard(node.name)
    else:
        state.asleep.add(node.name)


def _register_cards(node: Node, cards: tuple[GpuInventory, ...]) -> None:
    """Cards are known by UUID alone; a missing one stays while something holds it."""
    told = {card.uuid: card for card in cards}
    for uuid, card in told.items():
        gpu = node.gpus.get(uuid)
        if gpu is None:
            capacity_milli = node.compute_overcommit_milli
            node.gpus[uuid] = Gpu(inventory=card, condition=GpuCondition(uuid=uuid), capacity_milli=capacity_milli)
            continue
        gpu.present = True
        # What slices may have together changes only while the card is empty.
        usable = gpu.inventory.usable_mib if gpu.holds else card.usable_mib
        gpu.inventory = msgspec.structs.replace(card, usable_mib=usable)
    for uuid in [u for u in node.gpus if u not in told]:
        if node.gpus[uuid].holds:
            node.gpus[uuid].present = False
        else:
            del node.gpus[uuid]


def _node_disconnected(state: ClusterState, event: NodeDisconnected, entry: Entry) -> None:
    state.own_node(event.node).ready = False
    state.touch(event.node)


def _node_silent(state: ClusterState, event: NodeSilent, entry: Entry) -> None:
    node = state.own_node(event.node)
    state.touch(event.node)
    node.ready = False
    node.state = NodeState.UNREACHABLE
    for attempt in state.live_attempts(node):
        check_attempt_move(attempt, AttemptState.UNKNOWN)
        state.own_attempt(attempt.id).state = AttemptState.UNKNOWN


def _node_cordoned(state: ClusterState, event: NodeCordoned, entry: Entry) -> None:
    node = state.own_node(event.node)
    state.touch(event.node)
    node.cordoned, node.reason, node.detail = True, event.reason, event.detail
    node.drain = node.drain or event.drain
    if event.drain and node.state is NodeState.ACTIVE:
        node.state = NodeState.DRAINING


def _node_uncordoned(state: ClusterState, event: NodeUncordoned, entry: Entry) -> None:
    node = state.own_node(event.node)
    state.touch(event.node)
    node.cordoned, node.drain, node.reason, node.detail = False, False, None, ""
    if node.state is NodeState.DRAINING:
        node.state = NodeState.ACTIVE


def _node_declared_dead(state: ClusterState, event: NodeDeclaredDead, entry: Entry) -> None:
    node = state.own_node(event.node)
    state.touch(event.node)
    node.state, node.ready = NodeState.LOST, False


def _gpu_conditions_changed(state: ClusterState, event: GpuConditionsChanged, entry: Entry) -> None:
    node = state.own_node(event.node)
    state.touch(event.node)
    for condition in event.conditions:
        if condition.uuid in node.gpus:
            node.gpus[condition.uuid].condition = condition


def _node_overcommitted(state: ClusterState, event: NodeOvercommitted, entry: Entry) -> None:
    node = state.own_node(event.node)
    state.touch(event.node)
    node.compute_overcommit_milli = event.compute_overcommit_milli
    for gpu in node.gpus.values():
        gpu.capacity_milli = event.compute_overcommit_milli


def _node_trust_changed(state: ClusterState, event: NodeTrustChanged, entry: Entry) -> None:
    state.own_node(event.node).trust_logins = event.trust_logins


def _node_power_requested(state: ClusterState, event: NodePowerRequested, entry: Entry) -> None:
    node = state.own_node(event.node)
    _set_power(state, node, event.power, entry.at_ms, event.detail)
    state.touch(event.node)


# -- reservations


def _reservation_created(state: ClusterState, event: ReservationCreated, entry: Entry) -> None:
    state.reservations[event.reservation.name] = event.reservation


def _reservation_deleted(state: ClusterState, event: ReservationDeleted, entry: Entry) -> None:
    del state.reservations[event.name]


HANDLERS: dict[type[Any], Callable[[ClusterState, Any, Entry], None]] = {
    TermStarted: _term_started,
    TenantCreated: _tenant_created,
    TenantUpdated: _tenant_updated,
    TenantDeleted: _tenant_deleted,
    TokenCreated: _token_created,
    TokenRevoked: _token_revoked,
    LoginTokenIssued: _login_token_issued,
    TokensForgotten: _tokens_forgotten,
    JoinTokenCreated: _join_token_created,
    NodeEnrolled: _node_enrolled,
    NodeSynced: _node_synced,
    NodeDisconnected: _node_disconnected,
    NodeSilent: _node_silent,
    NodeCordoned: _node_cordoned,
    NodeUncordoned: _node_uncordoned,
    NodeDeclaredDead: _node_declared_dead,
    NodeOvercommitted: _node_overcommitted,
    NodeTrustChanged: _node_trust_changed,
    NodePowerRequested: _node_power_requested,
    ReservationCreated: _reservation_created,
    ReservationDeleted: _reservation_deleted,
    GpuConditionsChanged: _gpu_conditions_changed,
    RequestCompleted: _request_completed,
    RequestsForgotten: _requests_forgotten,
}
