"""Tokens on a host's word: who gets one, for which tenant, how many, and what becomes of them."""

from __future__ import annotations

import msgspec
import pytest
from cluster import Cluster

from gpushare.core.commands import (
    CreateToken,
    DeleteTenant,
    Housekeep,
    IssueLoginToken,
    Outcome,
    Rejection,
    RevokeToken,
    SetNode,
    UpdateTenant,
)
from gpushare.core.decide_logins import KEPT_MS, LIVE_MAX
from gpushare.core.events import TokensForgotten
from gpushare.core.kinds import Role
from gpushare.core.model import Principal, TenantSettings, Token
from gpushare.ratelimit import RateLimit
from gpushare.reasons import Reason

TTL_MS = 3600_000
# tenant: what it takes ("@" is a group)
TAKES = {"nlp": "@nlp @everyone", "ops": "eve", "vision": "@vision-lab @everyone ada"}


@pytest.fixture
def cluster() -> Cluster:
    found = Cluster(tenants=tuple(TAKES))
    for tenant, words in TAKES.items():
        takes(found, tenant, words)
    found.node("n1", 1)
    found.must(SetNode("n1", trust_logins=True))
    return found


def takes(cluster: Cluster, tenant: str, words: str) -> None:
    groups = tuple(word[1:] for word in words.split() if word[0] == "@")
    users = tuple(word for word in words.split() if word[0] != "@")
    settings = cluster.state.tenants[tenant].settings
    cluster.must(UpdateTenant(tenant, msgspec.structs.replace(settings, unix_groups=groups, unix_users=users)))


def ask(cluster: Cluster, person: str, groups: str = "", tenant: str = "", node: str = "n1") -> Outcome | Rejection:
    place = len(cluster.journal)
    command = IssueLoginToken(node, person, tuple(groups.split()), tenant, f"t{place}", f"sha{place}", TTL_MS)
    return cluster.do(command, Principal(user=node, role=Role.AGENT, node=node))


def token(cluster: Cluster, person: str, groups: str = "", tenant: str = "", node: str = "n1") -> Token:
    outcome = ask(cluster, person, groups, tenant, node)
    assert isinstance(outcome, Outcome), outcome
    return cluster.state.tokens[outcome.names[0]]


def refused(cluster: Cluster, person: str, groups: str = "", tenant: str = "", node: str = "n1") -> Rejection:
    before = cluster.state.encode()
    outcome = ask(cluster, person, groups, tenant, node)
    assert isinstance(outcome, Rejection), outcome
    assert cluster.state.encode() == before, "a refusal changes nothing"
    return outcome


# person, groups, the tenant asked for: the tenant, or why not
CASES = """
ada    -                       -        vision
ada    nlp                     -        vision
ada    nlp                     nlp      LOGIN_UNMAPPED
bob    vision-lab              -        vision
bob    staff,vision-lab,games  -        vision
bob    vision-lab,nlp          -        TENANT_AMBIGUOUS
bob    vision-lab,nlp          nlp      nlp
bob    everyone                -        TENANT_AMBIGUOUS
bob    everyone                vision   vision
bob    vision-lab              nlp      LOGIN_UNMAPPED
bob    staff                   -        LOGIN_UNMAPPED
bob    -                       -        LOGIN_UNMAPPED
bob    ada                     -        LOGIN_UNMAPPED
bob    vision-lab              nowhere  LOGIN_UNMAPPED
eve    everyone                -        ops
root   vision-lab              -        LOGIN_DENIED
b/ob   vision-lab              -        INVALID_FIELD
-rf    vision-lab              -        INVALID_FIELD
"""


@pytest.mark.parametrize("case", CASES.strip().splitlines())
def test_who_belongs_where(cluster: Cluster, case: str) -> None:
    person, groups, wanted, answer = ("" if word == "-" else word for word in case.split())
    groups = groups.replace(",", " ")
    if answer.isupper():
        assert refused(cluster, person, groups, wanted).reason == answer
        return
    made = token(cluster, person, groups, wanted)
    assert made.principal == Principal(user=person, role=Role.USER, tenant=answer, unix_user=person)
    assert (made.expires_ms, made.login_node) == (cluster.now_ms + TTL_MS, "n1")
    assert cluster.replayed().encode() == cluster.state.encode()


def test_refusals_name_what_the_admin_types_and_the_tenants_to_choose_from(cluster: Cluster) -> None:
    assert "gpushare tenant set TENANT --unix-user bob" in refused(cluster, "bob").detail
    assert "nlp, vision" in refused(cluster, "bob", "everyone").detail
    cluster.must(SetNode("n1", trust_logins=False))
    assert "gpushare node set n1 --trust-logins on" in refused(cluster, "ada").detail


def test_a_host_counts_from_the_admins_word_to_the_end_of_it(cluster: Cluster) -> None:
    cluster.node("n2", 1)
    assert refused(cluster, "ada", node="n2").reason is Reason.HOST_NOT_TRUSTED
    assert refused(cluster, "ada", node="nowhere").reason is Reason.HOST_NOT_TRUSTED
    cluster.must(SetNode("n2", trust_logins=True))
    mine, other = token(cluster, "ada"), token(cluster, "ada", node="n2")
    cluster.must(SetNode("n1", trust_logins=False))
    assert (bool(mine.revoked_ms), bool(other.revoked_ms)) == (True, False)
    assert refused(cluster, "ada").reason is Reason.HOST_NOT_TRUSTED
    assert cluster.replayed().encode() == cluster.state.encode()


def test_trust_outlives_the_agents_restart_and_a_new_enrolment(cluster: Cluster) -> None:
    cluster.sync("n1", start_counter=2, boot_id="boot-2")
    assert cluster.state.nodes["n1"].trust_logins


def test_a_tenant_that_was_deleted_takes_nobody(cluster: Cluster) -> None:
    made = token(cluster, "eve")
    cluster.must(DeleteTenant("ops"))
    assert made.revoked_ms
    assert refused(cluster, "eve").reason is Reason.LOGIN_UNMAPPED


def test_the_oldest_of_one_person_on_one_host_makes_room(cluster: Cluster) -> None:
    bobs = token(cluster, "bob", "vision-lab")
    made = []
    for _ in range(LIVE_MAX + 3):
        cluster.tick(1)
        made.append(token(cluster, "ada"))
    assert [t.id for t in made if t.is_live(cluster.now_ms)] == [t.id for t in made[3:]]
    assert bobs.is_live(cluster.now_ms)


def test_what_is_long_over_is_forgotten_and_nothing_else(cluster: Cluster) -> None:
    agents = next(iter(cluster.state.tokens))
    early = token(cluster, "ada")
    revoked = token(cluster, "ada")
    cluster.must(RevokeToken(revoked.id))
    cluster.tick(TTL_MS + KEPT_MS)
    assert cluster.must(Housekeep(0)).events == (TokensForgotten(token_ids=(revoked.id,)),)
    late = token(cluster, "ada")
    cluster.tick(1)
    assert cluster.must(Housekeep(0)).events == (TokensForgotten(token_ids=(early.id,)),)
    assert set(cluster.state.tokens) == {agents, late.id}
    assert cluster.replayed().encode() == cluster.state.encode()


def test_the_forgetting_goes_in_portions(cluster: Cluster) -> None:
    for _ in range(5):
        token(cluster, "ada")
    cluster.tick(TTL_MS + KEPT_MS + 1)
    portions = []
    while (outcome := cluster.must(Housekeep(0, most=2))).is_partial:
        portions.append(len(outcome.events[0].token_ids))  # type: ignore[attr-defined]
    assert portions == [2, 2]
    assert not [t for t in cluster.state.tokens.values() if t.login_node]


def test_accounts_of_the_hosts_are_not_a_tenants_admins_to_take(cluster: Cluster) -> None:
    cluster.must(UpdateTenant("ops", TenantSettings(parent="vision")))
    tina = Principal(user="tina", role=Role.TENANT_ADMIN, tenant="vision")
    for field in ("unix_users", "unix_groups"):
        wanted = msgspec.structs.replace(cluster.state.tenants["ops"].settings, **{field: ("mallory",)})
        rejection = cluster.do(UpdateTenant("ops", wanted), tina)
        assert isinstance(rejection, Rejection)
        assert rejection.reason is Reason.PERMISSION_DENIED


def test_a_host_s_word_for_a_person_lets_no_tenants_admin_be_that_person(cluster: Cluster) -> None:
    """Or one login would give every later admin of the tenant the account's files."""
    takes(cluster, "vision", "ada")
    token(cluster, "ada")
    tina = Principal(user="tina", role=Role.TENANT_ADMIN, tenant="vision")
    rejection = cluster.do(CreateToken("t9", "sha9", "ada", Role.USER, "vision", unix_user="ada"), tina)
    assert isinstance(rejection, Rejection)
    assert rejection.reason is Reason.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("unix_users", text) for text in ("root", "", "a b", "a/b", "-a", "a" * 65, "ä")),
        *(("unix_groups", text) for text in ("", "a\0", "a\nb", "a" * 257)),
    ],
)
def test_what_is_no_account_or_group_is_refused(cluster: Cluster, field: str, value: str) -> None:
    wanted = msgspec.structs.replace(cluster.state.tenants["ops"].settings, **{field: (value,)})
    rejection = cluster.do(UpdateTenant("ops", wanted))
    assert isinstance(rejection, Rejection)
    assert (rejection.reason, rejection.field) == (Reason.INVALID_FIELD, field)


class TestRateLimit:
    def test_a_burst_and_then_so_many_a_second(self) -> None:
        limit = RateLimit(burst=3, per_s=2)
        assert [limit.allows("a", 10.0) for _ in range(5)] == [True, True, True, False, False]
        assert [limit.allows("a", 11.0) for _ in range(3)] == [True, True, False]
        assert limit.allows("b", 11.0)
        assert [limit.allows("a", 1000.0) for _ in range(4)] == [True, True, True, False]

    def test_whoever_was_quiet_for_longest_is_forgotten(self) -> None:
        limit = RateLimit(burst=1, per_s=0.001, keys_max=2)
        assert [limit.allows(key, 0.0) for key in ("a", "b", "a", "c", "a", "b")] == [
            True, True, False, True, False, True,
        ]  # fmt: skip
