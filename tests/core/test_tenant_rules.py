"""What a tenant may have: bounds, the tree, guarantees that fit, and what a tenant's own admin may not give."""

from __future__ import annotations

import msgspec
import pytest
from cluster import Cluster

from gpushare.core import tenant_rules
from gpushare.core.commands import CoreSettings, CreateTenant, CreateToken, DeleteTenant, Rejection, UpdateTenant
from gpushare.core.kinds import Role
from gpushare.core.model import ModelQuota, Principal, TenantSettings
from gpushare.reasons import Reason

S = TenantSettings
TINA = Principal(user="tina", role=Role.TENANT_ADMIN, tenant="lab")
BIG = 2**63 - 1


def make(cluster: Cluster, tenant: str, who: Principal | None = None, **settings: object) -> None:
    command = CreateTenant(tenant, S(**settings))  # type: ignore[arg-type]
    cluster.must(command, who) if who else cluster.must(command)


def change(cluster: Cluster, tenant: str, who: Principal | None = None, **settings: object) -> object:
    new = msgspec.structs.replace(cluster.state.tenants[tenant].settings, **settings)
    command = UpdateTenant(tenant, new)
    return cluster.do(command, who) if who else cluster.do(command)


def refused(cluster: Cluster, outcome: object, before: bytes) -> Rejection:
    assert isinstance(outcome, Rejection), outcome
    assert cluster.state.encode() == before, "a refusal changes nothing"
    return outcome


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(tenants=())


BAD = {
    "guaranteed -1": ({"guaranteed_milli": -1}, "guaranteed_milli"),
    "guaranteed 2^63-1": ({"guaranteed_milli": BIG}, "guaranteed_milli"),
    "guaranteed above the limit": ({"guaranteed_milli": 2001, "limit_milli": 2000}, "guaranteed_milli"),
    "weight 0": ({"weight": 0}, "weight"),
    "weight 1,000,001": ({"weight": 1_000_001}, "weight"),
    "max running -1": ({"max_running_jobs": -1}, "max_running_jobs"),
    "max running per user -1": ({"max_running_per_user": -1}, "max_running_per_user"),
    "cpu limit 2^63-1": ({"cpu_limit_milli": BIG}, "cpu_limit_milli"),
    "memory limit -1": ({"memory_limit_mib": -1}, "memory_limit_mib"),
    "min run -1": ({"min_run_ms": -1}, "min_run"),
    "min run of a year": ({"min_run_ms": 366 * 24 * 3600 * 1000}, "min_run"),
    "a quota without a model": ({"model_quotas": (ModelQuota(""),)}, "model_quotas"),
    "a quota of two models": ({"model_quotas": (ModelQuota("A|B"),)}, "model_quotas"),
    "a model twice": ({"model_quotas": (ModelQuota("A"), ModelQuota("A"))}, "model_quotas"),
    "a model's guarantee above its limit": ({"model_quotas": (ModelQuota("A", 2, 1),)}, "model_quotas"),
    "a model's guarantee of -1": ({"model_quotas": (ModelQuota("A", -1),)}, "model_quotas"),
    "65 models": ({"model_quotas": tuple(ModelQuota(f"M{i}") for i in range(65))}, "model_quotas"),
    "a model with a NUL": ({"model_quotas": (ModelQuota("A\0"),)}, "model_quotas"),
    "a parent that is not there": ({"parent": "nobody"}, "parent"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_setting_is_refused_and_changes_nothing(cluster: Cluster, name: str) -> None:
    fields, field = BAD[name]
    make(cluster, "old")
    before = cluster.state.encode()
    made = cluster.do(CreateTenant("new", S(**fields)))  # type: ignore[arg-type]
    for outcome in (made, change(cluster, "old", **fields)):
        assert refused(cluster, outcome, before).field == field


def test_borderline_settings_pass(cluster: Cluster) -> None:
    make(
        cluster,
        "edge",
        guaranteed_milli=2000,
        limit_milli=2000,
        weight=1_000_000,
        max_running_jobs=0,
        min_run_ms=0,
        model_quotas=(ModelQuota("A", 0, 0),),
    )


# -- the tree


def test_a_tree_is_eight_levels_deep_and_no_deeper(cluster: Cluster) -> None:
    make(cluster, "t1")
    for level in range(2, 9):
        make(cluster, f"t{level}", parent=f"t{level - 1}")
    make(cluster, "other")
    before = cluster.state.encode()
    assert refused(cluster, cluster.do(CreateTenant("t9", S(parent="t8"))), before).field == "parent"
    # Nor by moving the whole branch further down.
    assert "9 levels" in refused(cluster, change(cluster, "t1", parent="other"), before).detail
    assert not isinstance(change(cluster, "t2", parent="other"), Rejection)


def test_a_tenant_cannot_stand_below_itself(cluster: Cluster) -> None:
    make(cluster, "a")
    make(cluster, "b", parent="a")
    make(cluster, "c", parent="b")
    before = cluster.state.encode()
    for parent in ("a", "b", "c"):
        assert "cycle" in refused(cluster, change(cluster, "a", parent=parent), before).detail


def test_a_tenant_with_children_cannot_be_deleted_nor_a_deleted_one_have_any(cluster: Cluster) -> None:
    make(cluster, "a")
    make(cluster, "b", parent="a")
    before = cluster.state.encode()
    assert refused(cluster, cluster.do(DeleteTenant("a")), before).reason is Reason.TENANT_NOT_EMPTY
    cluster.must(DeleteTenant("b"))
    cluster.must(DeleteTenant("a"))
    before = cluster.state.encode()
    assert refused(cluster, cluster.do(CreateTenant("c", S(parent="a"))), before).reason is Reason.NOT_FOUND


# -- guarantees


def test_the_childrens_guarantees_fit_their_parents(cluster: Cluster) -> None:
    make(cluster, "lab", guaranteed_milli=4000)
    make(cluster, "a", parent="lab", guaranteed_milli=3000)
    make(cluster, "b", parent="lab", guaranteed_milli=1000)
    before = cluster.state.encode()
    for outcome in (
        change(cluster, "b", guaranteed_milli=1001),
        change(cluster, "lab", guaranteed_milli=3999),
        cluster.do(CreateTenant("c", S(parent="lab", guaranteed_milli=1))),
    ):
        assert refused(cluster, outcome, before).field == "guaranteed_milli"


def test_a_parent_without_a_guarantee_holds_nobody_back(cluster: Cluster) -> None:
    make(cluster, "lab")
    make(cluster, "a", parent="lab", guaranteed_milli=3000)
    assert not isinstance(change(cluster, "lab", guaranteed_milli=3000), Rejection)


def test_a_tenant_between_passes_on_what_is_guaranteed_below_it(cluster: Cluster) -> None:
    make(cluster, "lab", guaranteed_milli=4000)
    make(cluster, "team", parent="lab")
    make(cluster, "a", parent="team", guaranteed_milli=3000)
    before = cluster.state.encode()
    assert isinstance(cluster.do(CreateTenant("b", S(parent="lab", guaranteed_milli=1001))), Rejection)
    assert isinstance(change(cluster, "a", guaranteed_milli=4001), Rejection)
    assert cluster.state.encode() == before


def test_guarantees_on_a_model_fit_apart(cluster: Cluster) -> None:
    make(cluster, "lab", guaranteed_milli=4000, model_quotas=(ModelQuota("H100", 2000),))
    make(cluster, "a", parent="lab", model_quotas=(ModelQuota("H100", 2000), ModelQuota("A100", 9000)))
    before = cluster.state.encode()
    command = CreateTenant("b", S(parent="lab", model_quotas=(ModelQuota("H100", 1),)))
    assert "H100" in refused(cluster, cluster.do(command), before).detail


# -- a tenant's own admin


@pytest.fixture
def lab(cluster: Cluster) -> Cluster:
    make(
        cluster,
        "lab",
        guaranteed_milli=2000,
        limit_milli=4000,
        max_queued_jobs=100,
        max_priority=10,
        min_run_ms=1000,
        cpu_limit_milli=8000,
        model_quotas=(ModelQuota("H100", 1000, 2000),),
    )
    make(cluster, "rival", guaranteed_milli=9000)
    make(cluster, "team", parent="lab", max_queued_jobs=100, max_priority=10)
    return cluster


def test_the_admin_of_a_tenant_makes_and_changes_those_below(lab: Cluster) -> None:
    make(lab, "a", TINA, parent="team", guaranteed_milli=2000, limit_milli=4000, max_queued_jobs=100, max_priority=10)
    assert not isinstance(change(lab, "a", TINA, weight=5, limit_milli=None, max_running_per_user=3), Rejection)
    assert not isinstance(change(lab, "a", TINA, parent="lab"), Rejection)


@pytest.mark.parametrize(
    "fields",
    [
        {"guaranteed_milli": 2001},
        {"limit_milli": 4001},
        {"max_queued_jobs": 101},
        {"max_priority": 11},
        {"min_run_ms": 1001},
        {"cpu_limit_milli": 8001},
        {"model_quotas": (ModelQuota("H100", 1001, 2000),)},
        {"model_quotas": (ModelQuota("H100", 0, 2001),)},
        {"model_quotas": (ModelQuota("A100", 1),)},
        {"model_quotas": (ModelQuota("A100", 0, 4001),)},
    ],
)
def test_and_never_gives_more_than_the_own_tenant_has(lab: Cluster, fields: dict[str, object]) -> None:
    before = lab.state.encode()
    whole: dict[str, object] = {"parent": "team", "max_queued_jobs": 1, "max_priority": 0, **fields}
    made = lab.do(CreateTenant("a", S(**whole)), TINA)  # type: ignore[arg-type]
    for outcome in (made, change(lab, "team", TINA, **fields)):
        assert refused(lab, outcome, before).reason is Reason.INVALID_FIELD


def test_what_the_cluster_s_admin_gave_more_of_stays_and_is_no_obstacle(lab: Cluster) -> None:
    assert not isinstance(change(lab, "team", min_run_ms=5000), Rejection)
    assert not isinstance(change(lab, "team", TINA, limit_milli=3000), Rejection)
    assert isinstance(change(lab, "team", TINA, min_run_ms=4000), Rejection)


def test_nor_more_in_sum_by_any_detour(lab: Cluster) -> None:
    small = {"max_queued_jobs": 1, "max_priority": 0}
    make(lab, "a", TINA, parent="lab", guaranteed_milli=1500, **small)
    before = lab.state.encode()
    deeper = CreateTenant("b", S(parent="team", guaranteed_milli=501, **small))  # type: ignore[arg-type]
    assert isinstance(lab.do(deeper, TINA), Rejection)
    # A tenant that has nothing guaranteed has nothing to give, although it holds nobody else back.
    poor = Principal(user="pia", role=Role.TENANT_ADMIN, tenant="team")
    gift = CreateTenant("b", S(parent="team", guaranteed_milli=1, **small))  # type: ignore[arg-type]
    assert isinstance(lab.do(gift, poor), Rejection)
    assert lab.state.encode() == before


def test_neither_the_own_settings_nor_other_tenants_are_open(lab: Cluster) -> None:
    before = lab.state.encode()
    assert refused(lab, change(lab, "lab", TINA, weight=9), before).reason is Reason.PERMISSION_DENIED
    assert refused(lab, change(lab, "team", TINA, isolated=True), before).reason is Reason.PERMISSION_DENIED
    assert refused(lab, change(lab, "rival", TINA, weight=9), before).reason is Reason.NOT_FOUND
    for parent in ("", "rival"):
        command = CreateTenant("x", S(parent=parent, max_queued_jobs=1, max_priority=0))
        assert refused(lab, lab.do(command, TINA), before).reason is Reason.NOT_FOUND
    assert refused(lab, change(lab, "team", TINA, parent="rival"), before).reason is Reason.NOT_FOUND
    assert refused(lab, change(lab, "team", TINA, parent=""), before).reason is Reason.NOT_FOUND


def test_nobody_makes_tenants_without_end(lab: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenant_rules, "CHILDREN_MAX", 50)
    small = {"max_queued_jobs": 1, "max_priority": 0}
    for number in range(49):
        make(lab, f"c{number}", parent="lab", **small)
    before = lab.state.encode()
    command = CreateTenant("onemore", S(parent="lab", **small))  # type: ignore[arg-type]
    assert refused(lab, lab.do(command, TINA), before).field == "parent"


class TestTokens:
    def token(self, role: Role, tenant: str, unix_user: str = "", user: str = "bob") -> CreateToken:
        return CreateToken("new", "sha", user, role, tenant, unix_user)

    @pytest.mark.parametrize("role", [Role.TENANT_ADMIN, Role.USER, Role.VIEWER])
    @pytest.mark.parametrize("tenant", ["lab", "team"])
    def test_of_the_own_tenants_are_given(self, lab: Cluster, role: Role, tenant: str) -> None:
        lab.must(self.token(role, tenant), TINA)
        assert lab.state.tokens["new"].principal.role is role

    @pytest.mark.parametrize(
        ("role", "tenant"),
        [(Role.ADMIN, ""), (Role.ADMIN, "lab"), (Role.OPERATOR, ""), (Role.USER, "rival"), (Role.AGENT, "lab")],
    )
    def test_no_others(self, lab: Cluster, role: Role, tenant: str) -> None:
        before = lab.state.encode()
        refused(lab, lab.do(self.token(role, tenant), TINA), before)

    def test_an_account_of_the_hosts_is_an_admins_to_give_first(self, lab: Cluster) -> None:
        """Whoever could name any account could run as anybody."""
        before = lab.state.encode()
        wanted = self.token(Role.USER, "team", unix_user="bob")
        assert refused(lab, lab.do(wanted, TINA), before).reason is Reason.PERMISSION_DENIED
        lab.must(CreateToken("first", "sha1", "bob", Role.USER, "lab", "bob"))
        before = lab.state.encode()
        for user in ("eve", "tina"):
            refused(lab, lab.do(self.token(Role.USER, "team", unix_user="bob", user=user), TINA), before)
        lab.must(wanted, TINA)


def test_the_clusters_minimum_run_time_bounds_where_the_own_tenant_has_none() -> None:
    cluster = Cluster(tenants=(), settings=CoreSettings(min_run_ms=500))
    make(cluster, "lab")
    make(cluster, "team", parent="lab")
    assert isinstance(change(cluster, "team", TINA, min_run_ms=501), Rejection)
    assert not isinstance(change(cluster, "team", TINA, min_run_ms=500), Rejection)
