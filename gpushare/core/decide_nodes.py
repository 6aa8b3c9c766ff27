"""Nodes, cards and leases: what admins and agents' sessions change. Pure.

An inventory that cannot be true is refused whole with BAD_REPORT; the shell then cordons the node. A silent node's
attempts keep their capacity until they are proven dead, or have surely stopped themselves.
"""

from __future__ import annotations

from gpushare import names
from gpushare.core import decide_logins
from gpushare.core.commands import (
    Call,
    Command,
    CordonNode,
    CoreSettings,
    CreateJoinToken,
    DeclareNodeDead,
    EndAttempt,
    EnrollNode,
    NodeLeaseExpired,
    NodeLeaseLapsed,
    NodeSessionClosed,
    Outcome,
    Rejection,
    ReportAttempt,
    ReportConditions,
    ReportPower,
    ReportRebooted,
    SetNode,
    SyncNode,
    UncordonNode,
)
from gpushare.core.events import (
    AttemptStopRequested,
    Event,
    GpuConditionsChanged,
    JoinTokenCreated,
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
    TokenRevoked,
)
from gpushare.core.kinds import AttemptState, GpuState, NodeState, OnDisconnect, Power
from gpushare.core.model import WHOLE_CARD_MILLI, GpuCondition, GpuInventory, JoinToken, Node
from gpushare.core.state import ClusterState
from gpushare.quantity import format_duration_ms
from gpushare.reasons import Reason

Decision = Outcome | Rejection

_MIB_MAX = 2**31 - 1
_TEXT_MAX_BYTES = 256
_DETAIL_MAX_BYTES = 8192
_STRANGERS_MAX = 1024
_TIERS_MAX = 16
_WARNINGS_MAX = 16
_INDEX_MAX = 1024
_OVERCOMMIT_MAX_MILLI = 10_000
_JOIN_TTL_MAX_MS = 30 * 24 * 3600 * 1000


def _no_node(node: str) -> Rejection:
    return Rejection(Reason.NOT_FOUND, f"node {names.shown(node)} does not exist")


def create_join_token(
    state: ClusterState, command: CreateJoinToken, call: Call, now_ms: int, settings: CoreSettings
) -> Decision:
    try:
        names.check_name(command.node, "node")
    except names.TextError as err:
        return Rejection(Reason.INVALID_FIELD, str(err), field="node")
    if not 1 <= command.ttl_ms <= _JOIN_TTL_MAX_MS:
        return Rejection(
            Reason.INVALID_FIELD,
            f"ttl: {format_duration_ms(command.ttl_ms)}; accepted: 1ms to {format_duration_ms(_JOIN_TTL_MAX_MS)}",
            field="ttl",
        )
    join = JoinToken(node=command.node, sha256=command.sha256, expires_ms=now_ms + command.ttl_ms)
    return Outcome(events=(JoinTokenCreated(join=join),), names=(command.node,))


def enroll(state: ClusterState, command: EnrollNode, call: Call, now_ms: int, settings: CoreSettings) -> Decision:
    join = state.join_tokens.get(command.secret_sha256)
    if join is None or join.expires_ms < now_ms:
        return Rejection(
            Reason.JOIN_SECRET_INVALID,
            "the join secret is unknown, used up or expired; ask an admin for a new one "
            "(`gpushare node join-token NODE`)",
        )
    event = NodeEnrolled(
        node=join.node,
        join_sha256=join.sha256,
        token_id=command.token_id,
        token_sha256=command.token_sha256,
        instance_id=command.instance_id,
    )
    return Outcome(events=(event,), names=(join.node,))


# -- what a session tells


def sync(state: ClusterState, command: SyncNode, call: Call, now_ms: int, settings: CoreSettings) -> Decision:
    """A whole inventory. Conditions and attempts follow as steps of their own."""
    node = state.nodes.get(command.node)
    if node is None:
        return _no_node(command.node)
    bad = _bad_inventory(state, command, settings)
    if bad:
        return Rejection(Reason.BAD_REPORT, f"node {command.node}: {bad}")
    event = NodeSynced(
        node=command.node,
        instance_id=command.instance_id,
        boot_id=command.boot_id,
        start_counter=command.start_counter,
        agent_version=command.agent_version,
        cpu_milli=command.cpu_milli,
        memory_mib=command.memory_mib,
        labels=command.labels,
        containment=command.containment,
        driver_version=command.driver_version,
        gpus=command.gpus,
        address=command.address,
        shared_paths=command.shared_paths,
        warnings=command.warnings,
    )
    return Outcome(events=(event,), names=(command.node,))


def _bad_inventory(state: ClusterState, command: SyncNode, settings: CoreSettings) -> str:
    if len(command.gpus) > settings.gpus_per_node_max:
        return f"{len(command.gpus)} GPUs on one node; accepted: {settings.gpus_per_node_max}"
    if not (1 <= command.cpu_milli <= _MIB_MAX and 1 <= command.memory_mib <= _MIB_MAX):
        return f"{command.cpu_milli} milli-CPU and {command.memory_mib} MiB cannot be"
    if len(command.labels) > settings.labels_max:
        return f"{len(command.labels)} labels; accepted: {settings.labels_max}"
    if len(command.shared_paths) > names.SHARED_PATHS_MAX:
        return f"{len(command.shared_paths)} shared paths; accepted: {names.SHARED_PATHS_MAX}"
    if len(command.warnings) > _WARNINGS_MAX:
        return f"{len(command.warnings)} warnings; accepted: {_WARNINGS_MAX}"
    uuids = [card.uuid for card in command.gpus]
    if len(set(uuids)) != len(uuids):
        return "a GPU UUID twice"
    for other in state.nodes.values():
        # A dead host's cards may have been moved; all its attempts have ended with it.
        if other.name != command.node and other.state is not NodeState.LOST:
            shared = [u for u in uuids if u in other.gpus]
            if shared:
                return (
                    f"GPU {names.shown(shared[0])} belongs to node {other.name}; if it was moved from there, declare "
                    "that node dead first"
                )
    try:
        said = (command.driver_version, command.agent_version, command.containment, command.address)
        for text in (*command.labels, *command.labels.values(), *said):
            names.check_text(text, "text", max_bytes=_TEXT_MAX_BYTES)
        for path in command.shared_paths:
            names.check_shared_path(path)
        for warning in command.warnings:
            names.check_text(warning, "warning", max_bytes=_DETAIL_MAX_BYTES)
        return next((bad for card in command.gpus if (bad := _bad_card(card))), "")
    except names.TextError as err:
        return str(err)


def _bad_card(card: GpuInventory) -> str:
    for text in (card.uuid, card.model, card.domain):
        names.check_text(text, "card", max_bytes=_TEXT_MAX_BYTES)
    if not card.uuid or not card.model:
        return "a card without UUID or model"
    if "|" in card.model:
        return f"card {names.shown(card.uuid)}: a | in the model {names.shown(card.model)} cannot be asked for"
    if len(card.tiers) > _TIERS_MAX or not 0 <= card.index < _INDEX_MAX:
        return f"card {names.shown(card.uuid)}: index {card.index} with {len(card.tiers)} tiers cannot be"
    for offer in card.tiers:
        names.check_text(offer.tier, "tier", max_bytes=_TEXT_MAX_BYTES)
        names.check_text(offer.absent_because, "tier", max_bytes=_DETAIL_MAX_BYTES, controls=True)
    if not 0 <= card.usable_mib <= card.total_mib <= _MIB_MAX:
        return f"card {names.shown(card.uuid)}: {card.usable_mib} of {card.total_mib} MiB cannot be"
    return ""


def steps_of_sync(state: ClusterState, command: SyncNode) -> list[Command]:
    """Conditions, then each attempt's report, then the attempts that a reboot took without a record."""
    node = state.nodes.get(command.node)
    if node is None:
        return []
    steps: list[Command] = [ReportConditions(node=command.node, conditions=command.conditions)]
    steps += [ReportAttempt(node=command.node, report=r) for r in command.attempts]
    if node.boot_id and node.boot_id != command.boot_id:
        told = {r.attempt for r in command.attempts}
        steps += [
            ReportRebooted(node=command.node, attempt=a.id)
            for a in state.live_attempts(node)
            if a.seen and a.id not in told
        ]
    return steps


def report_conditions(
    state: ClusterState, command: ReportConditions, call: Call, now_ms: int, settings: CoreSettings
) -> Decision:
    node = state.nodes.get(command.node)
    if node is None:
        return _no_node(command.node)
    for condition in command.conditions:
        bad = _bad_condition(condition)
        if bad:
            return Rejection(Reason.BAD_REPORT, f"card {names.shown(condition.uuid)}: {bad}")
    news = tuple(c for c in command.conditions if c.uuid in node.gpus and node.gpus[c.uuid].condition != c)
    if not news:
        return Outcome()
    events: list[Event] = [GpuConditionsChanged(node=node.name, conditions=news)]
    events += _stops_on_lost_cards(state, node, news)
    return Outcome(events=tuple(events), names=(node.name,))


def _bad_condition(condition: GpuCondition) -> str:
    if len(condition.strangers) > _STRANGERS_MAX or any(s.memory_mib < 0 or s.pid < 0 for s in condition.strangers):
        return "strangers that cannot be"
    try:
        for text in (condition.reason, *(s.user for s in condition.strangers)):
            names.check_text(text, "text", max_bytes=_TEXT_MAX_BYTES)
        names.check_text(condition.detail, "detail", max_bytes=_DETAIL_MAX_BYTES, controls=True)
    except names.TextError as err:
        return str(err)
    return ""


def _stops_on_lost_cards(state: ClusterState, node: Node, news: tuple[GpuCondition, ...]) -> list[Event]:
    lost = {c.uuid: c for c in news if c.state is GpuState.LOST}
    return [
        AttemptStopRequested(
            attempt=a.id, reason=Reason.GPU_LOST, detail=f"GPU {uuid} is lost: {lost[uuid].detail or lost[uuid].reason}"
        )
        for a in state.live_attempts(node)
        for uuid in a.slice.gpu_uuids[:64]
        # A suspended one has given its cards up, and goes on with others.
        if uuid in lost and not a.desired_stop and a.suspended_ms is None
    ]


# -- leases


def session_closed(
    state: ClusterState, command: NodeSessionClosed, call: Call, now_ms: int, settings: CoreSettings
) -> Decision:
    node = state.nodes.get(command.node)
    if node is None or not node.ready:
        return Outcome()
    return Outcome(events=(NodeDisconnected(node=node.name),), names=(node.name,))


def lease_expired(
    state: ClusterState, command: NodeLeaseExpired, call: Call, now_ms: int, settings: CoreSettings
) -> Decision:
    node = state.nodes.get(command.node)
    if node is None or node.state in (NodeState.UNREACHABLE, NodeState.LOST):
        return Outcome()
    return Outcome(events=(NodeSilent(node=node.name),), names=(node.name,))


def lease_lapsed(
    state: ClusterState, command: NodeLeaseLapsed, call: Call, now_ms: int, settings: CoreSettings
) -> Decision:
    return Outcome(names=(command.node,))


def steps_of_lapse(state: ClusterState, command: NodeLeaseLapsed) -> list[Command]:
    """Tasks that stop themselves without a lease have done so: they may run elsewhere."""
    node = state.nodes.get(command.node)
    if node is None or node.state is not NodeState.UNREACHABLE:
        return []
    detail = f"node {node.name} was out of reach past its lease; the task stopped itself there"
    return [
        EndAttempt(attempt=a.id, state=AttemptState.STOPPED, reason=Reason.LEASE_EXPIRED, detail=detail)
        for a in state.live_attempts(node)
        if state.jobs[a.job_key].spec.on_disconnect is OnDisconnect.STOP_AND_REQUEUE
    ]


# -- admins


def cordon(state: ClusterState, command: CordonNode, call: Call, now_ms: int, settings: CoreSettings) -> Decision:
    node = state.nodes.get(command.node)
    if node is None:
        return _no_node(command.node)
    try:
        names.check_text(command.detail, "detail", max_bytes=_TEXT_MAX_BYTES * 4)
    except names.TextError as err:
        return Rejection(Reason.INVALID_FIELD, str(err), field="detail")
    if node.cordoned and node.drain >= command.drain and node.reason is command.reason:
        return Outcome(names=(node.name,))
    event = NodeCordoned(node=node.name, reason=command.reason, detail=command.detail, drain=command.drain)
    return Outcome(events=(event,), names=(node.name,))


def uncordon(state: ClusterState, command: UncordonNode, call: Call, now_ms: int, settings: CoreSettings) -> Decision:
    node = state.nodes.get(command.node)
    if node is None:
        return _no_node(command.node)
    events = (NodeUncordoned(node=node.name),) if node.cordoned else ()
    return Outcome(events=events, names=(node.name,))


def set_node(state: ClusterState, command: SetNode, call: Call, now_ms: int, settings: CoreSettings) -> Decision:
    """Less overcommit than its shares already use is refused: nothing is taken from a job that runs. A host that is no
    longer trusted takes the tokens with it that were given on its word."""
    node = state.nodes.get(command.node)
    if node is None:
        return _no_node(command.node)
    bad = _bad_overcommit(node, command.compute_overcommit_milli)
    if bad is not None:
        return bad
    events: list[Event] = []
    wanted = command.compute_overcommit_milli
    if wanted is not None and wanted != node.compute_overcommit_milli:
        events.append(NodeOvercommitted(node=node.name, compute_overcommit_milli=wanted))
    if command.trust_logins is not None and command.trust_logins != node.trust_logins:
        events.append(NodeTrustChanged(node=node.name, trust_logins=command.trust_logins))
        if not command.trust_logins:
            given = decide_logins.tokens_of(state, node.name)
            events += [TokenRevoked(token_id=t.id) for t in given if t.is_live(now_ms)]
    return Outcome(events=tuple(events), names=(node.name,))


def _bad_overcommit(node: Node, wanted: int | None) -> Rejection | None:
    if wanted is None or wanted == node.compute_overcommit_milli:
        return None
    if not WHOLE_CARD_MILLI <= wanted <= _OVERCOMMIT_MAX_MILLI:
        return Rejection(
            Reason.INVALID_FIELD,
            f"compute_overcommit_milli: is {wanted}; accepted: {WHOLE_CARD_MILLI} to {_OVERCOMMIT_MAX_MILLI} "
            "(1.0 to 10.0)",
            field="compute_overcommit_milli",
        )
    full = [gpu for gpu in node.gpus.values() if gpu.used_milli > wanted]
    if full:
        return Rejection(
            Reason.NODE_BUSY,
            f"shares on card {full[0].uuid} of node {node.name} add up to {full[0].used_milli} thousandths, above "
            f"{wanted}; wait until some of them have ended, or drain the node first",
        )
    return None


def declare_dead(
    state: ClusterState, command: DeclareNodeDead, call: Call, now_ms: int, settings: CoreSettings
) -> Decision:
    node = state.nodes.get(command.node)
    if node is None:
        return _no_node(command.node)
    if node.state is NodeState.LOST:
        return Outcome(names=(node.name,))
    if node.state is not NodeState.UNREACHABLE:
        return Rejection(
            Reason.NODE_NOT_SILENT,
            f"node {node.name} is {node.state}: only a node out of reach can be declared dead; drain it instead",
        )
    return Outcome(events=(NodeDeclaredDead(node=node.name),), names=(node.name,))


def steps_of_death(state: ClusterState, command: DeclareNodeDead) -> list[Command]:
    node = state.nodes.get(command.node)
    if node is None or node.state is not NodeState.UNREACHABLE:
        return []
    detail = f"an admin declared node {node.name} dead"
    return [
        EndAttempt(attempt=a.id, state=AttemptState.FAILED, reason=Reason.DECLARED_DEAD, detail=detail)
        for a in state.live_attempts(node)
    ]


# -- power


def report_power(
    state: ClusterState, command: ReportPower, call: Call, now_ms: int, settings: CoreSettings
) -> Decision:
    """A node that could not be put to sleep stays in use; one that could not be woken sleeps on."""
    node = state.nodes.get(command.node)
    if node is None:
        return _no_node(command.node)
    instead = {Power.DOWN: Power.ON, Power.WAKING: Power.DOWN}.get(command.power)
    if not command.detail or node.power is not command.power or instead is None:
        return Outcome(names=(node.name,))
    event = NodePowerRequested(node=node.name, power=instead, detail=command.detail)
    return Outcome(events=(event,), names=(node.name,))
