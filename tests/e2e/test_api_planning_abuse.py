"""Reservations, node settings and previews in the hands of somebody who means harm, or types fast: what cannot be is
refused by a typed error and changes nothing, and of those who race for the last card exactly one gets it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from api_cluster import ApiCluster, api_cluster, refusal, run

from gpushare.core.invariants import check
from gpushare.errors import GpushareError
from gpushare.v1 import node_pb2, tenant_pb2

HOUR_MS = 3_600_000
FAR_S = (2**63 - 1, -(2**63), 10**15, -(10**15), 253_402_300_800)
TYPED = {"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "PERMISSION_DENIED"}


def reserve(cluster: ApiCluster, name: str, gpus: int = 2) -> node_pb2.CreateReservationRequest:
    request = node_pb2.CreateReservationRequest(reservation_id=name, tenant="vision", gpus=gpus, request_id=name)
    request.start_time.FromMilliseconds(cluster.engine.now_ms() + HOUR_MS)
    request.end_time.FromMilliseconds(cluster.engine.now_ms() + 2 * HOUR_MS)
    return request


def impossible(cluster: ApiCluster) -> Iterable[Any]:
    """Calls that must be refused."""
    for place, seconds in enumerate(FAR_S):
        for field in ("start_time", "end_time", "until_time", "repeat"):
            request = reserve(cluster, f"x{place}")
            getattr(request, field).seconds = seconds
            if field == "until_time":
                request.repeat.seconds = 7200
            elif field == "start_time" and seconds < 0:
                request.end_time.seconds = seconds
            yield cluster.reservations("root").CreateReservation(request)
    for milli in (2**63 - 1, -(2**63), -1, 0, 999, 10**9):
        update = node_pb2.UpdateNodeRequest(name="nodes/n1", compute_overcommit_milli=milli, request_id=f"o{milli}")
        yield cluster.nodes("root").UpdateNode(update)
    for number, field in enumerate(("limit_milli", "guaranteed_milli", "weight", "max_queued_jobs", "max_running_jobs",
                                    "cpu_limit_milli", "memory_limit_mib")):  # fmt: skip
        for value in (2**63 - 1, -1, -(2**63)):
            settings = tenant_pb2.TenantSettings(**{field: value})
            change = tenant_pb2.QuotaChange(name="tenants/vision", settings=settings)
            yield cluster.tenants("root").PreviewQuota(tenant_pb2.PreviewQuotaRequest(changes=[change]))
            yield cluster.tenants("root").UpdateTenant(
                tenant_pb2.UpdateTenantRequest(name="tenants/vision", settings=settings, request_id=f"s{number}{value}")
            )
    for name in ("ann", "nina"):
        yield cluster.reservations(name).CreateReservation(reserve(cluster, f"by-{name}"))
        yield cluster.nodes(name).PlanRepack(node_pb2.PlanRepackRequest())
        change = tenant_pb2.QuotaChange(name="tenants/nlp", settings=tenant_pb2.TenantSettings(weight=9))
        yield cluster.tenants(name).PreviewQuota(tenant_pb2.PreviewQuotaRequest(changes=[change]))
    jobs = ["tenants/vision/jobs/1"]
    yield cluster.nodes("root").ApplyRepack(node_pb2.ApplyRepackRequest(jobs=jobs, request_id="m"))


def test_what_cannot_be_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            await cluster.agent("n1", cards=2)
            nodes, tenants = cluster.engine.state.nodes["n1"], dict(cluster.engine.state.tenants)
            overcommit, settings = nodes.compute_overcommit_milli, {n: t.settings for n, t in tenants.items()}
            for call in impossible(cluster):
                error = await refusal(call)
                assert error.status in TYPED, error
            state = cluster.engine.state
            assert not state.reservations
            assert state.nodes["n1"].compute_overcommit_milli == overcommit
            assert {n: t.settings for n, t in state.tenants.items()} == settings
            check(state)

    run(test)


async def outcome(call: Any) -> str:
    try:
        await call
    except Exception as err:
        return err.status if isinstance(err, GpushareError) else (await refusal_of(err)).status
    return "OK"


async def refusal_of(err: Exception) -> GpushareError:
    async def again() -> None:
        raise err

    return await refusal(again())


@pytest.mark.parametrize("racers", [2, 20])
def test_of_those_who_race_for_the_last_cards_one_gets_them(tmp_path: Path, racers: int) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            await cluster.agent("n1", cards=2)
            calls = [cluster.reservations("root").CreateReservation(reserve(cluster, f"r{n}")) for n in range(racers)]
            drain = node_pb2.DrainNodeRequest(name="nodes/n1", request_id="drain")
            *got, drained = await asyncio.gather(*map(outcome, calls), outcome(cluster.nodes("root").DrainNode(drain)))
            assert drained == "OK"
            assert got.count("OK") == len(cluster.engine.state.reservations) <= 1
            assert set(got) <= {"OK", "FAILED_PRECONDITION"}
            check(cluster.engine.state)

    run(test)
