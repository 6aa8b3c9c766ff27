"""Scheduling passes are not run for nothing: a submit to a full cluster costs none, and room that appears is seen."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gpushare.core.commands import (
    Call,
    CordonNode,
    CoreSettings,
    CreateJoinToken,
    CreateTenant,
    EnrollNode,
    RawJob,
    RawResources,
    SubmitJobs,
    SyncNode,
    UncordonNode,
)
from gpushare.core.cycle import Pass
from gpushare.core.cycle import schedule as real_schedule
from gpushare.core.kinds import Enforcement, JobState, Role
from gpushare.core.model import SYSTEM, GpuInventory, Principal, TenantSettings, TierOffer
from gpushare.core.state import ClusterState
from gpushare.scheduler import engine as engine_module
from gpushare.scheduler.engine import Engine
from gpushare.store.memory import MemoryDisk, MemoryStore

WHO = Principal(user="ann", role=Role.USER, tenant="vision", unix_user="ann")
CARD = GpuInventory(
    uuid="GPU-1",
    index=0,
    model="H100-80GB",
    total_mib=81559,
    usable_mib=81559,
    tiers=(TierOffer("exclusive", Enforcement.HARD), TierOffer("timeslice", Enforcement.SOFT)),
)


async def submit(engine: Engine, number: int, milli: int = 500) -> str:
    job = RawJob(argv=("true",), working_directory="/", resources=RawResources(gpu_milli=milli))
    call = Call(WHO, f"request-{number}", "CreateJob", "body")
    key: str = await engine.execute(SubmitJobs("vision", (job,)), call, lambda state, outcome: outcome.names[0])
    return key


async def cluster_of_one_card(engine: Engine) -> None:
    for command in (
        CreateTenant("vision", TenantSettings()),
        CreateJoinToken(node="n1", sha256="join", ttl_ms=1000),
        EnrollNode("join", "instance", "token", "sha"),
        SyncNode(
            node="n1",
            instance_id="instance",
            boot_id="boot",
            start_counter=1,
            agent_version="1",
            cpu_milli=64_000,
            memory_mib=512_000,
            labels={},
            containment="cgroup-v2",
            driver_version="1",
            gpus=(CARD,),
        ),
    ):
        await engine.execute(command, Call(SYSTEM))


async def queued(engine: Engine, key: str) -> bool:
    return await engine.read(lambda state: state.jobs[key].state is JobState.QUEUED)


async def until_placed(engine: Engine, key: str) -> None:
    async with asyncio.timeout(10):
        while await queued(engine, key):
            await asyncio.sleep(0.005)


def test_a_job_like_one_that_waits_needs_no_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    passes: list[int] = []

    def counted(state: ClusterState, *rest: Any) -> Pass:
        passes.append(state.seq)
        return real_schedule(state, *rest)

    monkeypatch.setattr(engine_module, "schedule", counted)

    async def story() -> None:
        engine = Engine(MemoryStore(MemoryDisk()), CoreSettings(), wall_ms=lambda: 1_700_000_000_000, holder="test")
        await engine.start()
        await cluster_of_one_card(engine)
        await engine.execute(CordonNode("n1"), Call(SYSTEM))
        first = await submit(engine, 0)
        async with asyncio.timeout(10):
            while engine.wait_of(engine.state.jobs[first]).reason != "NODES_UNAVAILABLE":  # type: ignore[union-attr]
                await asyncio.sleep(0.005)
        seen = len(passes)
        others = [await submit(engine, number) for number in range(1, 40)]
        assert len(passes) == seen
        assert engine.wait_of(engine.state.jobs[others[-1]]).reason == "NODES_UNAVAILABLE"  # type: ignore[union-attr]

        other_shape = await submit(engine, 100, milli=250)
        async with asyncio.timeout(10):
            while len(passes) == seen:
                await asyncio.sleep(0.005)
        assert await queued(engine, other_shape)

        await engine.execute(UncordonNode("n1"), Call(SYSTEM))
        await until_placed(engine, first)
        await until_placed(engine, others[0])
        assert await queued(engine, others[1])
        await engine.stop()

    asyncio.run(asyncio.wait_for(story(), 30))
