"""Who calls, what each role may call, and how far it reaches.

Imports the core's nouns, the errors and the token functions; no protobuf, no network. Invariants: `RULES` is the only
place that says which role may call what, an RPC that is not in it cannot be served (`rule_of` raises at start), and a
caller's reach comes from its rule alone. A name beyond a caller's reach answers NOT_FOUND exactly like an absent one.
What is shown of a tenant beyond it is decided here alone, by `Caller.sees_jobs_of` and `view_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import Enum, StrEnum
from types import MappingProxyType
from typing import Final

import msgspec

from gpushare.core.kinds import Role
from gpushare.core.model import Job, Principal, Tenant, Token
from gpushare.core.state import ClusterState
from gpushare.core.tenant_tree import DEPTH_MAX, is_below
from gpushare.errors import GpushareError, error_of
from gpushare.reasons import Reason
from gpushare.scheduler import tokens


class Reach(Enum):
    """How far a role gets with one RPC: everything; its own tenant and all below it; its own tenant; its own tenant,
    but touching only its own jobs; nothing but the token that it calls with; its own node."""

    ALL = "all"
    SUBTREE = "subtree"
    TENANT = "tenant"
    OWN_JOBS = "own jobs"
    OWN_TOKEN = "own token"
    NODE = "node"


class Visibility(StrEnum):
    """What people see of other tenants: who holds how much, where and until when; or nothing."""

    CLUSTER = "cluster"
    TENANT = "tenant"


class JobView(Enum):
    """How much of a job its reader gets: everything; everything but script, environment and a very long command
    (listings and watches, so that they stay small); what others of the tenant, viewers and operators may see; or what
    listings show to other tenants."""

    FULL = "full"
    BASIC = "basic"
    REDACTED = "redacted"
    FOREIGN = "foreign"


#: The reach of each role that may call an RPC; ANONYMOUS where no token is needed.
Rule = Mapping[Role, Reach]
ANONYMOUS: Final[Rule] = MappingProxyType({})

_ADMIN: Final = {Role.ADMIN: Reach.ALL}
_OPERATORS: Final = {Role.ADMIN: Reach.ALL, Role.OPERATOR: Reach.ALL}
_TENANT_ADMINS: Final = {Role.ADMIN: Reach.ALL, Role.TENANT_ADMIN: Reach.SUBTREE}
_READERS: Final = {
    **_OPERATORS,
    Role.TENANT_ADMIN: Reach.SUBTREE,
    Role.USER: Reach.TENANT,
    Role.VIEWER: Reach.TENANT,
}
# Capacity is no secret: whoever may submit or look may see the nodes.
_NODE_READERS: Final = _READERS
_SUBMITTERS: Final = {Role.ADMIN: Reach.ALL, Role.USER: Reach.TENANT}
_JOB_KEEPERS: Final = {**_OPERATORS, Role.TENANT_ADMIN: Reach.SUBTREE, Role.USER: Reach.OWN_JOBS}
_AGENT: Final = {Role.AGENT: Reach.NODE}
_OWN_TOKEN: Final = dict.fromkeys(_READERS, Reach.OWN_TOKEN)

RULES: Final[Mapping[str, Rule]] = MappingProxyType(
    {
        "/gpushare.v1.JobService/CreateJob": _SUBMITTERS,
        "/gpushare.v1.JobService/BatchCreateJobs": _SUBMITTERS,
        "/gpushare.v1.JobService/GetJob": _READERS,
        "/gpushare.v1.JobService/ListJobs": _READERS,
        "/gpushare.v1.JobService/CancelJob": _JOB_KEEPERS,
        # How far a limit may be extended, the core decides.
        "/gpushare.v1.JobService/ExtendJob": _JOB_KEEPERS,
        "/gpushare.v1.JobService/RequeueJob": _JOB_KEEPERS,
        # The new job runs as its submitter, whoever had the old one.
        "/gpushare.v1.JobService/ResubmitJob": {Role.ADMIN: Reach.ALL, Role.USER: Reach.OWN_JOBS},
        "/gpushare.v1.JobService/ExplainJob": _READERS,
        "/gpushare.v1.JobService/WatchJobs": _READERS,
        # What a job prints is its user's; an operator sees that it runs, not what it says.
        "/gpushare.v1.JobService/StreamLogs": {Role.ADMIN: Reach.ALL, Role.USER: Reach.OWN_JOBS},
        # Whoever connects acts as the job's Unix user.
        "/gpushare.v1.JobService/Connect": {Role.ADMIN: Reach.ALL, Role.USER: Reach.OWN_JOBS},
        # What a tenant's admin may set, and whom they may give a token, the core decides.
        "/gpushare.v1.TenantService/CreateTenant": _TENANT_ADMINS,
        "/gpushare.v1.TenantService/GetTenant": _READERS,
        "/gpushare.v1.TenantService/ListTenants": _READERS,
        "/gpushare.v1.TenantService/UpdateTenant": _TENANT_ADMINS,
        "/gpushare.v1.TenantService/DeleteTenant": _ADMIN,
        "/gpushare.v1.TenantService/CreateToken": _TENANT_ADMINS,
        "/gpushare.v1.TenantService/ListTokens": _TENANT_ADMINS,
        # To log out is everybody's right.
        "/gpushare.v1.TenantService/RevokeToken": {**_OWN_TOKEN, **_TENANT_ADMINS},
        "/gpushare.v1.TenantService/WhoAmI": _READERS,
        "/gpushare.v1.TenantService/GetOwnToken": _OWN_TOKEN,
        "/gpushare.v1.TenantService/PreviewQuota": _ADMIN,
        "/gpushare.v1.NodeService/GetNode": _NODE_READERS,
        "/gpushare.v1.NodeService/ListNodes": _NODE_READERS,
        "/gpushare.v1.NodeService/CordonNode": _OPERATORS,
        "/gpushare.v1.NodeService/UncordonNode": _OPERATORS,
        "/gpushare.v1.NodeService/DrainNode": _OPERATORS,
        "/gpushare.v1.NodeService/DeclareNodeDead": _ADMIN,
        "/gpushare.v1.NodeService/CreateJoinToken": _ADMIN,
        "/gpushare.v1.NodeService/UpdateNode": _ADMIN,
        "/gpushare.v1.NodeService/PlanRepack": _ADMIN,
        "/gpushare.v1.NodeService/ApplyRepack": _ADMIN,
        # An operator closes nodes for maintenance; what a tenant gets is an admin's to say.
        "/gpushare.v1.ReservationService/CreateReservation": _OPERATORS,
        "/gpushare.v1.ReservationService/ListReservations": _NODE_READERS,
        "/gpushare.v1.ReservationService/DeleteReservation": _OPERATORS,
        "/gpushare.v1.UsageService/GetUsage": _READERS,
        "/gpushare.v1.UsageService/ListAuditEvents": _ADMIN,
        "/gpushare.v1.AgentService/Enroll": ANONYMOUS,
        "/gpushare.v1.AgentService/Session": _AGENT,
        "/gpushare.v1.AgentService/SendLogs": _AGENT,
        # Which nodes' word counts, the core decides.
        "/gpushare.v1.AgentService/IssueLoginToken": _AGENT,
        "/gpushare.v1.AgentService/Channel": _AGENT,
    }
)


def rule_of(rpc: str) -> Rule:
    """The rule of "/package.Service/Method". Raises LookupError for an RPC that nobody thought about."""
    rule = RULES.get(rpc)
    if rule is None:
        raise LookupError(f"{rpc} is not in the authorization table (gpushare/scheduler/auth.py)")
    return rule


def _nothing_below(tenant: str, top: str) -> bool:
    return False


def _none_open(tenant: str) -> bool:
    return False


def is_open(tenants: Mapping[str, Tenant], visibility: Visibility, tenant: str) -> bool:
    """Whether others see that jobs of `tenant` are there, and its people those of others: not where it, or a tenant
    above it, is isolated. What a deleted tenant was holds on for its jobs."""
    for _ in range(DEPTH_MAX + 1):
        found = tenants.get(tenant)
        if found is None or found.settings.isolated or visibility is Visibility.TENANT:
            return False
        if not found.settings.parent:
            return True
        tenant = found.settings.parent
    return False


class Caller(msgspec.Struct, frozen=True):
    """One authenticated call. `peer` is the network address, for the audit; `token_id` is "" for an anonymous RPC;
    `is_below` and `is_open` look at the tenants as they are then, so that both are true for a stream's whole life."""

    rpc: str
    principal: Principal
    token_id: str
    reach: Reach
    peer: str = ""
    is_below: Callable[[str, str], bool] = _nothing_below
    is_open: Callable[[str], bool] = _none_open

    @property
    def tenant(self) -> str:
        return self.principal.tenant

    def sees_tenant(self, tenant: str) -> bool:
        """Whether it is within reach: everything that may be asked of it is answered."""
        if self.reach is Reach.ALL:
            return True
        own = self.principal.tenant
        return tenant != "" and (tenant == own or (self.reach is Reach.SUBTREE and self.is_below(tenant, own)))

    def sees_jobs_of(self, tenant: str) -> bool:
        """Whether the caller may know that jobs of `tenant` are there: within reach, or shown to everybody. "" stands
        for what belongs to no tenant, strangers' processes on a card: for all who see other tenants' jobs."""
        return self.sees_tenant(tenant) or (self.is_open(self.tenant) and (tenant == "" or self.is_open(tenant)))

    @property
    def is_of_one_tenant(self) -> bool:
        """Nothing is within reach but its own tenant."""
        return self.reach not in (Reach.ALL, Reach.SUBTREE)

    @property
    def is_confined(self) -> bool:
        """No tenant but its own has jobs that it sees."""
        return self.is_of_one_tenant and not self.is_open(self.tenant)

    def owns(self, job: Job) -> bool:
        """True where the job is the caller's own: submitted by the same person, in the caller's tenant."""
        return job.tenant == self.principal.tenant and self.submitted(job)

    def submitted(self, job: Job) -> bool:
        """True where the caller's person submitted it. The same name with another account of the hosts is somebody
        else: who reaches a job reaches what its account reaches."""
        who, submitter = self.principal, job.created_by
        return (who.user, who.unix_user) == (submitter.user, submitter.unix_user)

    def may_touch(self, job: Job) -> bool:
        """For RPCs whose reach may be OWN_JOBS, on a job that the caller sees."""
        return self.reach in (Reach.ALL, Reach.SUBTREE) or self.owns(job)


ANYBODY: Final = Principal(user="", role=Role.VIEWER)


def view_of(caller: Caller, job: Job, *, listing: bool = False) -> JobView | None:
    """How much of a job the caller gets; None: as if it were not there. Command and environment for admins, and for
    users their own; the command for a tenant's admin. Another tenant's is in listings and watches alone."""
    if not caller.sees_tenant(job.tenant):
        return JobView.FOREIGN if listing and caller.sees_jobs_of(job.tenant) else None
    role = caller.principal.role
    if role is Role.TENANT_ADMIN:
        return JobView.BASIC
    if role is Role.ADMIN or (role is Role.USER and caller.owns(job)):
        return JobView.BASIC if listing else JobView.FULL
    return JobView.REDACTED


class Authenticator:
    """Tokens to callers. Reads the state that `state` gives; remembers nothing."""

    def __init__(self, state: Callable[[], ClusterState], now_ms: Callable[[], int], visibility: Visibility) -> None:
        self._state = state
        self._now_ms = now_ms
        self._visibility = visibility

    def admit(self, rpc: str, metadata: Iterable[tuple[str, str | bytes]], peer: str) -> Caller:
        """The caller of an RPC, checked against `RULES`. Raises UNAUTHENTICATED or PERMISSION_DENIED."""
        rule = rule_of(rpc)
        if rule is ANONYMOUS:
            return Caller(rpc, ANYBODY, "", Reach.NODE, peer)
        token = self._token(metadata)
        reach = rule.get(token.principal.role)
        if reach is None:
            raise denied(token.principal, rpc)
        return Caller(rpc, token.principal, token.id, reach, peer, self._is_below, self._is_open)

    def known(self, metadata: Iterable[tuple[str, str | bytes]]) -> Principal | None:
        """Who it is, for a line of the audit; None where the token says nothing."""
        try:
            return self._token(metadata).principal
        except GpushareError:
            return None

    def _is_below(self, tenant: str, top: str) -> bool:
        return is_below(self._state().tenants, tenant, top)

    def _is_open(self, tenant: str) -> bool:
        return is_open(self._state().tenants, self._visibility, tenant)

    def _token(self, metadata: Iterable[tuple[str, str | bytes]]) -> Token:
        headers = [value for key, value in metadata if key == "authorization"]
        if not headers:
            raise _unauthenticated("The call carries no token.")
        secret = tokens.bearer_token(headers[0]) if len(headers) == 1 else None
        if secret is None:
            raise _unauthenticated("The call's authorization header holds no token of gpushare.")
        sha256 = tokens.token_sha256(secret)
        found = self._state().tokens_by_sha.get(sha256)
        if found is None or not tokens.same_hash(found.sha256, sha256):
            raise _unauthenticated("The token is not known here.")
        if found.revoked_ms:
            raise _unauthenticated("The token was revoked.")
        if self.is_expired(found):
            raise _unauthenticated("The token has expired.")
        return found

    def is_expired(self, token: Token) -> bool:
        return token.expires_ms != 0 and token.expires_ms <= self._now_ms()


def denied(who: Principal, rpc: str) -> GpushareError:
    """The refusal of an RPC that the caller's role may not call."""
    method = rpc.rpartition("/")[2]
    allowed = ", ".join(sorted(role.value for role in rule_of(rpc)))
    return error_of(
        Reason.PERMISSION_DENIED,
        f"{method} is not open to the role {who.role.value}; it is to: {allowed}.",
        metadata={"role": who.role.value, "allowed": allowed},
    )


def _unauthenticated(message: str) -> GpushareError:
    return error_of(Reason.UNAUTHENTICATED, message)
