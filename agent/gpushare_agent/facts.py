"""What a session says first: who the agent is, and all it knows. Pure data between the agent and its session."""

from __future__ import annotations

import msgspec

from gpushare.core.model import GpuCondition, GpuInventory
from gpushare_agent.core import Report


class HelloFacts(msgspec.Struct, frozen=True):
    """Who speaks."""

    instance_id: str
    boot_id: str
    start_counter: int
    agent_version: str
    highest_term: int


class SyncFacts(msgspec.Struct, frozen=True):
    """The agent's whole truth."""

    cpu_milli: int
    memory_mib: int
    labels: dict[str, str]
    containment: str
    driver_version: str
    gpus: tuple[GpuInventory, ...]
    conditions: tuple[GpuCondition, ...]
    reports: tuple[Report, ...]
    shared_paths: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
