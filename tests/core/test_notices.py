"""What is accepted with a word of warning: jobs that no limit or guarantee would ever let start, quotas on no card."""

from __future__ import annotations

import re

import pytest
from cluster import Cluster, card, raw_job, user_of

from gpushare.core import notices
from gpushare.core.commands import CreateTenant, RawResources, SubmitJobs, UpdateTenant
from gpushare.core.kinds import Qos, Role
from gpushare.core.model import ModelQuota, Principal, TenantSettings
from gpushare.core.notices import GUARANTEES, MODEL_QUOTAS, NEVER_STARTS
from gpushare.core.quota import QuotaTree
from gpushare.core.state import ClusterState
from gpushare.reasons import Reason

R = RawResources
ADMIN = Principal(user="root", role=Role.ADMIN)
OTHER = ModelQuota("B300", limit_milli=1000)

# Of tenant vision, below lab: limit 4, guarantee 2 of lab, and vision's own settings; the job; the notice or None.
CASES: dict[str, tuple[dict[str, object], dict[str, object], str | None]] = {
    "a job within": ({}, {"resources": R(gpus=4)}, None),
    "a job above a parent's limit": ({}, {"resources": R(gpus=5)}, "TENANT_LIMIT_NEVER: it needs 5 cards .*tenant lab"),
    "a gang above it": ({}, {"resources": R(gpus=1), "tasks": 5}, "it needs 5 cards"),
    "a gang whose least is within": ({}, {"resources": R(gpus=1), "tasks": 8, "min_tasks": 4}, None),
    "a small share under a small limit": ({"limit_milli": 300}, {"resources": R(gpu_milli=250)}, None),
    "a share whose memory is more": (
        {"limit_milli": 300},
        {"resources": R(gpu_milli=250, gpu_memory_mib=40_000)},
        "TENANT_LIMIT_NEVER: it needs 0.491 cards",
    ),
    "a limit on its model": (
        {"model_quotas": (ModelQuota("H100-80GB", limit_milli=1000),)},
        {"resources": R(gpus=2, gpu_model="H100-80GB")},
        "tenant vision may use 1, so as things are it waits for ever;",
    ),
    "a limit on another model": ({"model_quotas": (OTHER,)}, {"resources": R(gpus=2, gpu_model="H100-80GB")}, None),
    "no more guaranteed than its own": (
        {"guaranteed_milli": 1000},
        {"resources": R(gpus=2), "qos": Qos.GUARANTEED},
        "QUOTA_NEVER: it needs 2 cards .*is guaranteed 1, .*for ever; .*--qos burst",
    ),
    "guaranteed and within": ({"guaranteed_milli": 2000}, {"resources": R(gpus=2), "qos": Qos.GUARANTEED}, None),
    "burst beyond the guarantee": ({"guaranteed_milli": 1000}, {"resources": R(gpus=2)}, None),
    "a CPU job without any guarantee": ({}, {"resources": R(gpus=0), "qos": Qos.GUARANTEED}, None),
}


def cluster(**settings: object) -> Cluster:
    made = Cluster(tenants=("lab", "vision"))
    made.node("n1", 8)
    made.must(UpdateTenant("lab", TenantSettings(limit_milli=4000, guaranteed_milli=2000)), ADMIN)
    made.must(UpdateTenant("vision", TenantSettings(parent="lab", **settings)), ADMIN)  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize("name", CASES)
def test_a_job_that_would_wait_for_ever_is_accepted_with_a_word(name: str) -> None:
    settings, fields, said = CASES[name]
    made = cluster(**settings)
    raw = raw_job(**fields)
    tried = made.must(SubmitJobs("vision", (raw,), validate_only=True), user_of("vision"))
    found = made.must(SubmitJobs("vision", (raw, raw), validate_only=False), user_of("vision"))
    assert tried.notices.get(NEVER_STARTS) == found.notices.get(NEVER_STARTS)
    waits = set(made.cycle().waits.values()) & {Reason.TENANT_LIMIT_NEVER, Reason.QUOTA_NEVER}
    if said is None:
        assert (found.notices.get(NEVER_STARTS), waits) == (None, set())
    else:
        (notice,) = found.notices[NEVER_STARTS]
        assert re.search(said, notice), notice
        assert waits == {Reason(notice.partition(":")[0])}, "the pass says what the submit said"


def test_a_quota_on_a_model_that_no_card_has_names_those_that_there_are() -> None:
    made = cluster()
    made.node("n2", 0)
    made.sync("n2", gpus=(card("GPU-n2-0", model="L40S"),))
    settings = TenantSettings(parent="lab", model_quotas=(ModelQuota("H100-80G"), ModelQuota("L40S")))
    (notice,) = made.must(UpdateTenant("vision", settings), ADMIN).notices[MODEL_QUOTAS]
    assert "'H100-80G'" in notice
    assert notice.endswith("there are: H100-80GB, L40S")
    assert made.state.tenants["vision"].settings == settings
    assert not made.must(UpdateTenant("vision", settings), ADMIN).notices, "said once"
    more = TenantSettings(parent="lab", weight=2, model_quotas=settings.model_quotas)
    assert not made.must(UpdateTenant("vision", more), ADMIN).notices, "another setting"
    assert made.must(CreateTenant("audio", settings), ADMIN).notices[MODEL_QUOTAS] == (notice,)


def test_where_there_is_no_card_at_all_no_model_is_strange() -> None:
    settings = TenantSettings(model_quotas=(ModelQuota("H100-80G"),))
    assert not Cluster().must(CreateTenant("audio", settings), ADMIN).notices


# Guarantees of lab, of vision below it, and of audio at the top, then the notice to the last one who was set.
GUARANTEED: dict[str, tuple[int, int, int, str]] = {
    "as many as there are": (2000, 0, 6000, ""),
    "more than there are": (2000, 0, 6500, "guarantees are 8.5 cards together, the cluster has 8: "),
    "what is below one that has more": (2000, 2000, 6000, ""),
    "what is below one that has none": (0, 3000, 6000, "guarantees are 9 cards together, the cluster has 8: "),
}


@pytest.mark.parametrize("name", GUARANTEED)
def test_guarantees_beyond_the_cards_are_accepted_with_a_word(name: str) -> None:
    lab, vision, audio, said = GUARANTEED[name]
    made = Cluster(tenants=("lab", "vision"))
    made.node("n1", 8)
    made.must(UpdateTenant("lab", TenantSettings(guaranteed_milli=lab)), ADMIN)
    made.must(UpdateTenant("vision", TenantSettings(parent="lab", guaranteed_milli=vision)), ADMIN)
    notices = made.must(CreateTenant("audio", TenantSettings(guaranteed_milli=audio)), ADMIN).notices
    assert [each.startswith(said) for each in notices.get(GUARANTEES, ())] == ([True] if said else [])
    less = TenantSettings(guaranteed_milli=audio - 1)
    assert not made.must(UpdateTenant("audio", less), ADMIN).notices, "who gives back is not warned"


def test_a_whole_batch_is_judged_by_one_look_at_the_quotas_and_told_of_in_few_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = cluster()
    made.node("n2", 24)
    looks: list[ClusterState] = []

    def look(state: ClusterState) -> QuotaTree:
        looks.append(state)
        return QuotaTree(state)

    monkeypatch.setattr(notices, "QuotaTree", look)
    jobs = tuple(raw_job(resources=R(gpus=gpus)) for gpus in range(5, 25))
    told = made.must(SubmitJobs("vision", jobs, validate_only=True), user_of("vision")).notices[NEVER_STARTS]
    assert (len(looks), len(told)) == (1, 10)
