"""Tokens on a host's word: which person of which host gets one, for which tenant, and when it is let go of.

Pure; secrets come as hashes. Invariants: a host that no admin trusts says nothing that counts; a person gets the role
of a user and their own account, never more; one person has at most `LIVE_MAX` such tokens of one host, so that neither
a home directory that keeps nothing nor an abuser fills the state.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gpushare import names
from gpushare.core.commands import Call, CoreSettings, IssueLoginToken, Outcome, Rejection
from gpushare.core.events import LoginTokenIssued, TokenRevoked
from gpushare.core.kinds import Role
from gpushare.core.model import Principal, Token
from gpushare.core.state import ClusterState
from gpushare.reasons import Reason

LIVE_MAX: Final = 8
# A token that is over stays so long, so that an admin who looks still finds it.
KEPT_MS: Final = 24 * 3600 * 1000
_GROUPS_MAX = 4096
_GROUP_MAX_BYTES = 256


def issue(
    state: ClusterState, command: IssueLoginToken, call: Call, now_ms: int, settings: CoreSettings
) -> Outcome | Rejection:
    """A token for one person; the oldest ones make room for it."""
    bad = _bad_person(command)
    if bad is not None:
        return bad
    node = state.nodes.get(command.node)
    if node is None or not node.trust_logins:
        return Rejection(
            Reason.HOST_NOT_TRUSTED,
            f"the word of host {command.node} that {command.unix_user} is logged in there does not count; an admin "
            "changes that with "
            f"`gpushare node set {command.node} --trust-logins on`",
        )
    tenant = _tenant_of(state, command)
    if isinstance(tenant, Rejection):
        return tenant
    who = Principal(user=command.unix_user, role=Role.USER, tenant=tenant, unix_user=command.unix_user)
    live = sorted(
        (t for t in tokens_of(state, command.node) if t.principal == who and t.is_live(now_ms)),
        key=lambda t: (t.created_ms, t.id),
    )
    too_many = live[: max(0, len(live) + 1 - LIVE_MAX)]
    issued = LoginTokenIssued(
        node=command.node,
        token_id=command.token_id,
        sha256=command.sha256,
        principal=who,
        expires_ms=now_ms + command.ttl_ms,
    )
    return Outcome(events=(*(TokenRevoked(token_id=t.id) for t in too_many), issued), names=(command.token_id,))


def tokens_of(state: ClusterState, node: str) -> Iterator[Token]:
    """What was given on the word of `node` and is still remembered."""
    return (t for t in state.tokens.values() if t.login_node == node)


def forgettable(state: ClusterState, now_ms: int, most: int) -> tuple[str, ...]:
    """Login tokens that have been over for long enough, at most so many."""
    found: list[str] = []
    for token in state.tokens.values():
        over_ms = token.revoked_ms or token.expires_ms
        if token.login_node and not token.is_live(now_ms) and over_ms + KEPT_MS < now_ms:
            found.append(token.id)
            if len(found) == most:
                break
    return tuple(found)


def _bad_person(command: IssueLoginToken) -> Rejection | None:
    try:
        names.check_account(command.unix_user, "unix_user")
        for group in command.groups:
            names.check_text(group, "groups", max_bytes=_GROUP_MAX_BYTES)
    except names.TextError as err:
        return Rejection(Reason.INVALID_FIELD, str(err), field=err.field)
    if len(command.groups) > _GROUPS_MAX:
        return Rejection(
            Reason.INVALID_FIELD, f"groups: has {len(command.groups)}; accepted: {_GROUPS_MAX}", field="groups"
        )
    if command.unix_user == "root":
        return Rejection(Reason.LOGIN_DENIED, "root gets no token on a host's word; log in as a person")
    return None


def _tenant_of(state: ClusterState, command: IssueLoginToken) -> str | Rejection:
    """Tenants that name the person count before those that name a group of theirs."""
    present = sorted((t for t in state.tenants.values() if not t.deleted), key=lambda t: t.name)
    groups = set(command.groups)
    fitting = [t.name for t in present if command.unix_user in t.settings.unix_users] or [
        t.name for t in present if groups.intersection(t.settings.unix_groups)
    ]
    wanted, who = command.tenant, command.unix_user
    if wanted and wanted not in fitting:
        return Rejection(
            Reason.LOGIN_UNMAPPED,
            f"tenant {names.shown(wanted)} does not take the Unix user {who}; an admin changes that with "
            f"`gpushare tenant set TENANT --unix-user {who}` or `--unix-group GROUP`",
        )
    if wanted or len(fitting) == 1:
        return wanted or fitting[0]
    if not fitting:
        return Rejection(
            Reason.LOGIN_UNMAPPED,
            f"no tenant takes the Unix user {who}; an admin changes that with "
            f"`gpushare tenant set TENANT --unix-user {who}` or `--unix-group GROUP`",
        )
    return Rejection(
        Reason.TENANT_AMBIGUOUS,
        f"the Unix user {who} belongs to several tenants: {', '.join(fitting)}; say which",
        metadata={"tenants": ",".join(fitting)},
    )
