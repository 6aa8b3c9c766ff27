"""Who calls and how far they get: the table, tokens, reach."""

from __future__ import annotations

import msgspec
import pytest

from gpushare.core.kinds import Role
from gpushare.core.model import Job, JobSpec, Principal, TaskRequest, Tenant, TenantSettings, Token
from gpushare.core.state import ClusterState
from gpushare.core.tenant_tree import is_below
from gpushare.errors import GpushareError
from gpushare.scheduler import tokens
from gpushare.scheduler.auth import (
    ANONYMOUS,
    RULES,
    Authenticator,
    Caller,
    JobView,
    Reach,
    Visibility,
    is_open,
    rule_of,
    view_of,
)
from gpushare.scheduler.server import SERVICES

GET_JOB = "/gpushare.v1.JobService/GetJob"


def every_rpc() -> list[str]:
    return [f"/{service.full_name}/{method.name}" for service in SERVICES for method in service.methods]


def test_every_rpc_of_every_service_is_in_the_table_and_nothing_else() -> None:
    assert sorted(RULES) == sorted(every_rpc())


def test_an_rpc_that_nobody_thought_about_cannot_be_served() -> None:
    with pytest.raises(LookupError, match="authorization table"):
        rule_of("/gpushare.v1.JobService/StealJob")


def test_only_enrolment_needs_no_token() -> None:
    assert [rpc for rpc in RULES if rule_of(rpc) is ANONYMOUS] == ["/gpushare.v1.AgentService/Enroll"]


def test_no_rpc_is_for_both_agents_and_people() -> None:
    for rpc, rule in RULES.items():
        assert (Role.AGENT in rule) == (rpc.startswith("/gpushare.v1.AgentService/") and rule is not ANONYMOUS), rpc


SECRET = tokens.new_token()


def authenticator(now_ms: int = 1000, **fields: int) -> Authenticator:
    state = ClusterState()
    who = Principal(user="ann", role=Role.USER, tenant="vision")
    state.add_token(Token("t1", tokens.token_sha256(SECRET), who, 0, **fields))
    return Authenticator(lambda: state, lambda: now_ms, Visibility.CLUSTER)


def headers(*values: str | bytes) -> list[tuple[str, str | bytes]]:
    return [("authorization", value) for value in values]


def test_a_known_token_names_its_caller() -> None:
    caller = authenticator().admit(GET_JOB, [("user-agent", "x"), *headers(f"Bearer {SECRET}")], "ipv4:1.2.3.4:5")
    assert (caller.principal.user, caller.token_id, caller.reach) == ("ann", "t1", Reach.TENANT)


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        headers(""),
        headers(SECRET),
        headers("Bearer "),
        headers(f"Bearer {SECRET} "),
        headers(f"Bearer  {SECRET}"),
        headers(f"Basic {SECRET}"),
        headers(f"Bearer {tokens.new_token()}"),
        headers(f"Bearer {tokens.new_join_secret()}"),
        headers(f"Bearer {SECRET}".encode()),
        headers(f"Bearer {SECRET}", f"Bearer {SECRET}"),
        headers("Bearer gps_" + "x" * 100_000),
    ],
)
def test_whatever_is_no_known_token_is_unauthenticated(metadata: list[tuple[str, str | bytes]]) -> None:
    with pytest.raises(GpushareError) as raised:
        authenticator().admit(GET_JOB, metadata, "")
    assert raised.value.status == "UNAUTHENTICATED"
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"revoked_ms": 5}, "revoked"), ({"expires_ms": 1000}, "expired"), ({"expires_ms": 1}, "expired")],
)
def test_a_revoked_or_expired_token_is_unauthenticated(fields: dict[str, int], message: str) -> None:
    with pytest.raises(GpushareError, match=message):
        authenticator(**fields).admit(GET_JOB, headers(f"Bearer {SECRET}"), "")


def test_a_token_counts_until_the_moment_it_expires() -> None:
    assert authenticator(expires_ms=1001).admit(GET_JOB, headers(f"Bearer {SECRET}"), "").token_id == "t1"


def test_a_role_that_an_rpc_is_not_open_to_is_denied_with_those_it_is_open_to() -> None:
    with pytest.raises(GpushareError) as raised:
        authenticator().admit("/gpushare.v1.TenantService/DeleteTenant", headers(f"Bearer {SECRET}"), "")
    assert raised.value.status == "PERMISSION_DENIED"
    assert raised.value.metadata == {"role": "user", "allowed": "admin"}


def caller(user: str, role: Role, tenant: str, rpc: str = GET_JOB) -> Caller:
    return Caller(rpc, Principal(user=user, role=role, tenant=tenant), "t", rule_of(rpc)[role])


def job_of(user: str, tenant: str) -> Job:
    spec = JobSpec(argv=("true",), resources=TaskRequest(gpus=1), working_directory="/")
    return Job(tenant, "1", spec, 0, Principal(user=user, role=Role.USER, tenant=tenant), 1)


@pytest.mark.parametrize(
    ("who", "owner", "view"),
    [
        (("ann", Role.USER, "vision"), ("ann", "vision"), JobView.FULL),
        (("bob", Role.USER, "vision"), ("ann", "vision"), JobView.REDACTED),
        # The same name in another tenant is another person, who sees nothing where nothing is open.
        (("ann", Role.USER, "nlp"), ("ann", "vision"), None),
        (("tina", Role.TENANT_ADMIN, "nlp"), ("ann", "vision"), None),
        # A viewer's token may carry a user's name.
        (("ann", Role.VIEWER, "vision"), ("ann", "vision"), JobView.REDACTED),
        (("ann", Role.OPERATOR, ""), ("ann", "vision"), JobView.REDACTED),
        (("root", Role.ADMIN, ""), ("ann", "vision"), JobView.FULL),
        # What runs, and not the secrets in its environment.
        (("tina", Role.TENANT_ADMIN, "vision"), ("ann", "vision"), JobView.BASIC),
    ],
)
def test_command_and_environment_are_for_admins_and_the_jobs_own_user(
    who: tuple[str, Role, str], owner: tuple[str, str], view: JobView | None
) -> None:
    job = job_of(*owner)
    assert view_of(caller(*who), job) is view
    listed = view_of(caller(*who), job, listing=True)
    assert listed is (JobView.BASIC if view is JobView.FULL else view)


TREE = {
    "vision": TenantSettings(),
    "nlp": TenantSettings(),
    "acme": TenantSettings(isolated=True),
    "acme-lab": TenantSettings(parent="acme"),
}


def cluster_caller(role: Role, tenant: str, visibility: Visibility) -> Caller:
    tenants = {name: Tenant(name, 0, settings) for name, settings in TREE.items()}
    tenants["vision"].deleted = tenant != "vision"  # its jobs outlive it
    return msgspec.structs.replace(
        caller("ann", role, tenant),
        is_below=lambda name, top: is_below(tenants, name, top),
        is_open=lambda name: is_open(tenants, visibility, name),
    )


@pytest.mark.parametrize("role", [Role.USER, Role.VIEWER, Role.TENANT_ADMIN])
@pytest.mark.parametrize(
    ("tenant", "visibility", "seen"),
    [
        ("nlp", Visibility.CLUSTER, {"vision"}),
        ("nlp", Visibility.TENANT, set()),
        # Isolated, from both sides; also where a tenant above it is.
        ("acme", Visibility.CLUSTER, set()),
        ("acme-lab", Visibility.CLUSTER, set()),
        ("acme", Visibility.TENANT, set()),
        # A token without a tenant, or of one that is unknown, sees nobody.
        ("", Visibility.CLUSTER, set()),
        ("nowhere", Visibility.CLUSTER, set()),
    ],
)
def test_other_tenants_jobs_are_in_listings_where_both_tenants_are_open(
    role: Role, tenant: str, visibility: Visibility, seen: set[str]
) -> None:
    who = cluster_caller(role, tenant, visibility)
    for other in (*TREE, "nowhere"):
        if who.sees_tenant(other):
            continue
        job = job_of("ann", other)
        assert view_of(who, job) is None
        assert view_of(who, job, listing=True) is (JobView.FOREIGN if other in seen else None), other
        assert who.sees_jobs_of(other) == (other in seen)
    assert who.sees_jobs_of("") == who.is_open(tenant)
    assert who.is_confined == (role is not Role.TENANT_ADMIN and not seen)


@pytest.mark.parametrize("visibility", list(Visibility))
def test_operators_and_admins_see_isolated_tenants_too(visibility: Visibility) -> None:
    for role in (Role.ADMIN, Role.OPERATOR):
        who = cluster_caller(role, "", visibility)
        assert all(who.sees_jobs_of(tenant) for tenant in (*TREE, ""))
        assert view_of(who, job_of("ann", "acme"), listing=True) not in (JobView.FOREIGN, None)


def test_a_tenant_is_matched_whole() -> None:
    acme = caller("ann", Role.USER, "acme")
    assert acme.sees_tenant("acme")
    assert not acme.sees_tenant("acme-2")
    assert not acme.sees_tenant("acm")
    assert not acme.sees_tenant("")
    # A tenant's admin alone looks further down, and only where the tree says so.
    tina = caller("tina", Role.TENANT_ADMIN, "acme")
    assert [tina.sees_tenant(t) for t in ("acme", "acme-2", "")] == [True, False, False]
    over = msgspec.structs.replace(tina, is_below=lambda tenant, top: (tenant, top) == ("acme-2", "acme"))
    assert [over.sees_tenant(t) for t in ("acme", "acme-2", "beta", "")] == [True, True, False, False]
    assert not msgspec.structs.replace(acme, is_below=lambda tenant, top: True).sees_tenant("acme-2")
    nobody = caller("vera", Role.VIEWER, "")
    assert not nobody.sees_tenant("")


def test_the_same_name_with_another_account_of_the_hosts_is_somebody_else() -> None:
    job = job_of("ann", "vision")
    for unix_user, owns in (("", True), ("ann", False)):
        who = msgspec.structs.replace(caller("ann", Role.USER, "vision").principal, unix_user=unix_user)
        found = msgspec.structs.replace(caller("ann", Role.USER, "vision"), principal=who)
        assert (found.owns(job), found.submitted(job)) == (owns, owns)
        assert view_of(found, job) is (JobView.FULL if owns else JobView.REDACTED)
