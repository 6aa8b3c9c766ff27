"""The API of tokens on a host's word: who may ask for one, what it is good for, how it ends, what the audit says."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from api_cluster import ApiCluster, api_cluster, refusal, run

from gpushare.reasons import Reason
from gpushare.scheduler import logins
from gpushare.v1 import agent_pb2, node_pb2, tenant_pb2, usage_pb2


def fresh() -> str:
    return uuid.uuid4().hex


async def trusted(cluster: ApiCluster, node: str = "n1") -> None:
    """A node whose word counts, and tenant vision, which takes ada and the group vision-lab."""
    await cluster.agent(node)
    await trust(cluster, node, True)
    settings = tenant_pb2.TenantSettings(unix_groups=["vision-lab"], unix_users=["ada"])
    await cluster.tenants("root").UpdateTenant(
        tenant_pb2.UpdateTenantRequest(name="tenants/vision", settings=settings, request_id=fresh())
    )


async def trust(cluster: ApiCluster, node: str, on: bool) -> node_pb2.Node:
    request = node_pb2.UpdateNodeRequest(name=f"nodes/{node}", trust_logins=on, request_id=fresh())
    changed: node_pb2.Node = await cluster.nodes("root").UpdateNode(request)
    return changed


def wanted(unix_user: str = "ada", **fields: Any) -> agent_pb2.IssueLoginTokenRequest:
    return agent_pb2.IssueLoginTokenRequest(unix_user=unix_user, **fields)


async def log_in(cluster: ApiCluster, unix_user: str = "ada", node: str = "n1", **fields: Any) -> str:
    answer = await cluster.agents(node).IssueLoginToken(wanted(unix_user, **fields))
    return str(answer.secret)


def test_a_person_of_a_trusted_host_works_as_themselves(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            await trusted(cluster)
            answer = await cluster.agents("n1").IssueLoginToken(wanted("bob.l", groups=["x", "vision-lab"]))
            assert (answer.user, answer.tenant, answer.ttl.seconds) == ("bob.l", "vision", 43_200)
            me = await cluster.tenants(answer.secret).WhoAmI(tenant_pb2.WhoAmIRequest())
            assert (me.user, me.role, me.tenant) == ("bob.l", "user", "vision")
            job = await cluster.submit(answer.secret)
            assert job.created_by.user == "bob.l"
            own = await cluster.tenants(answer.secret).GetOwnToken(tenant_pb2.GetOwnTokenRequest())
            assert (own.unix_user, own.node, own.role) == ("bob.l", "n1", tenant_pb2.ROLE_USER)
            assert own.expire_time.seconds - own.create_time.seconds == 43_200

    run(test)


def test_a_host_that_nobody_trusts_is_refused_and_that_is_kept(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            await trusted(cluster)
            await cluster.agent("n2")
            error = await refusal(cluster.agents("n2").IssueLoginToken(wanted()))
            assert (error.reason, error.status) == (Reason.HOST_NOT_TRUSTED, "PERMISSION_DENIED")
            assert "gpushare node set n2 --trust-logins on" in error.message
            request = usage_pb2.ListAuditEventsRequest(denials=True)
            denials = (await cluster.usage("root").ListAuditEvents(request)).events
            assert [(d.principal.user, d.reason) for d in denials] == [("n2", "HOST_NOT_TRUSTED")]

    run(test)


def test_every_person_who_is_refused_is_in_the_audit_with_the_host(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            await trusted(cluster)
            tenant = tenant_pb2.TenantSettings(unix_users=["ada"])
            await cluster.tenants("root").CreateTenant(
                tenant_pb2.CreateTenantRequest(tenant_id="speech", settings=tenant, request_id=fresh())
            )
            for person in ("zed", "mallory", "ada", "root"):
                await refusal(cluster.agents("n1").IssueLoginToken(wanted(person)))
            request = usage_pb2.ListAuditEventsRequest(denials=True)
            denials = (await cluster.usage("root").ListAuditEvents(request)).events
            assert {d.principal.user for d in denials} == {"n1"}
            expected = {
                "zed": "LOGIN_UNMAPPED", "mallory": "LOGIN_UNMAPPED", "ada": "TENANT_AMBIGUOUS", "root": "LOGIN_DENIED",
            }  # fmt: skip
            for person, reason in expected.items():
                assert [d.reason for d in denials if person in d.detail_json] == [reason], person

    run(test)


def test_the_audit_names_node_and_person_and_hides_the_rest(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            await trusted(cluster)
            secret = await log_in(cluster)
            found = []
            for kind in ("NodeTrustChanged", "LoginTokenIssued"):
                request = usage_pb2.ListAuditEventsRequest(kind=kind)
                (event,) = (await cluster.usage("root").ListAuditEvents(request)).events
                found.append((event.principal.role, event.principal.user, event.subject))
                detail = json.loads(event.detail_json)
                assert detail["node"] == "n1"
                assert secret not in event.detail_json
            own = await cluster.tenants(secret).GetOwnToken(tenant_pb2.GetOwnTokenRequest())
            assert found == [("admin", "root", "nodes/n1"), ("agent", "n1", own.name)]
            assert detail["principal"]["user"] == "ada"
            assert "sha256" not in detail

    run(test)


def test_taking_the_trust_away_ends_what_was_given_on_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            await trusted(cluster)
            secret = await log_in(cluster)
            assert not (await trust(cluster, "n1", False)).trust_logins
            error = await refusal(cluster.tenants(secret).WhoAmI(tenant_pb2.WhoAmIRequest()))
            assert error.reason is Reason.UNAUTHENTICATED

    run(test)


@pytest.mark.parametrize("who", ["ann", "vera", "olga", "tina", "root"])
def test_everybody_may_revoke_the_own_token_and_sees_it(tmp_path: Path, who: str) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            tenants = cluster.tenants(who)
            own = await tenants.GetOwnToken(tenant_pb2.GetOwnTokenRequest())
            assert own.user == who
            ninas = await cluster.tenants("nina").GetOwnToken(tenant_pb2.GetOwnTokenRequest())
            if who != "root":
                for name in (ninas.name, "tokens/0000000000000000"):
                    request = tenant_pb2.RevokeTokenRequest(name=name, request_id=fresh())
                    assert (await refusal(tenants.RevokeToken(request))).status == "NOT_FOUND"
            await tenants.RevokeToken(tenant_pb2.RevokeTokenRequest(name=own.name, request_id=fresh()))
            error = await refusal(tenants.WhoAmI(tenant_pb2.WhoAmIRequest()))
            assert error.reason is Reason.UNAUTHENTICATED
            assert (await cluster.tenants("nina").WhoAmI(tenant_pb2.WhoAmIRequest())).user == "nina"

    run(test)


def test_neither_a_host_nor_a_person_may_ask_without_end(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            await trusted(cluster)
            await trusted(cluster, "n2")
            for _ in range(logins.PERSON_BURST):
                await log_in(cluster)
            assert (await refusal(cluster.agents("n1").IssueLoginToken(wanted()))).reason is Reason.BUSY
            # No host can use up what the same person may ask for on another, and another person of this host is served.
            await log_in(cluster, node="n2")
            await log_in(cluster, "bob", groups=["vision-lab"])
            live = [t for t in cluster.engine.state.tokens.values() if t.login_node == "n1" and not t.revoked_ms]
            assert len([t for t in live if t.principal.user == "ada"]) <= 8

    run(test)


def test_what_is_no_person_is_refused_by_its_field(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            await trusted(cluster)
            for request, field in (
                (wanted(""), "unix_user"),
                (wanted("a\0b"), "unix_user"),
                (wanted("ada" * 100), "unix_user"),
                (wanted(groups=["x" * 257]), "groups"),
                (wanted(groups=["g"] * 4097), "groups"),
            ):
                error = await refusal(cluster.agents("n1").IssueLoginToken(request))
                assert [v.field for v in error.violations] == [field], request
            assert (await refusal(cluster.agents("n1").IssueLoginToken(wanted("root")))).reason is Reason.LOGIN_DENIED

    run(test)


def test_settings_are_replaced_kept_and_taken_away(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            await trusted(cluster)

            async def change(**settings: Any) -> tuple[list[str], list[str]]:
                request = tenant_pb2.UpdateTenantRequest(
                    name="tenants/vision", settings=tenant_pb2.TenantSettings(**settings), request_id=fresh()
                )
                made = await cluster.tenants("root").UpdateTenant(request)
                return list(made.unix_groups), list(made.unix_users)

            assert await change(weight=2) == (["vision-lab"], ["ada"])
            assert await change(unix_users=["zoe", "bob", "zoe"]) == (["vision-lab"], ["bob", "zoe"])
            assert await change(unset=["unix_groups"]) == ([], ["bob", "zoe"])
            both = tenant_pb2.UpdateTenantRequest(
                name="tenants/vision",
                settings=tenant_pb2.TenantSettings(unix_users=["a"], unset=["unix_users"]),
                request_id=fresh(),
            )
            assert (await refusal(cluster.tenants("root").UpdateTenant(both))).status == "INVALID_ARGUMENT"

    run(test)
