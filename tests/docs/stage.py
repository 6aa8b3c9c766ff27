"""The cluster that pages are run against: simulated cards, real daemons and real processes, a tenant for each page.

What a page finds that its reader would have by other means stands here and nowhere else: the programs on PATH, the
people of its tenant, and a stand-in for PyTorch where that is not installed (`stand_ins/torch`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from pages import Typed, read_page, run_page
from upcluster import UpCluster

ROOT = Path(__file__).parents[2]
STAND_INS = Path(__file__).parent / "stand_ins"
SHAPE = "2x4xH100-80GB"


class Stage:
    """`run` plays one page; each has a tenant of its own, so that its jobs are numbered from 1."""

    def __init__(self, cluster: UpCluster) -> None:
        self.cluster = cluster
        self._people: set[str] = set()

    def run(self, path: Path, directory: Path) -> list[Typed]:
        page = read_page(path)
        tenant = page.options.get("tenant")
        if tenant:
            self.cluster.ok("tenant", "create", tenant)
        try:
            return run_page(page, directory, self._environment)
        finally:
            self._leave_idle()

    def _environment(self, options: Mapping[str, str]) -> dict[str, str]:
        user = options.get("user", "admin")
        if user != "admin" and user not in self._people:
            role = options.get("role", "user")
            join = self.cluster.ok("token", "create", user, "--tenant", options["tenant"], "--role", role).out
            self.cluster.ok("login", "-", person=user, input=join)
            self._people.add(user)
        return {**self.cluster.environment(user), **stand_ins()}

    def _leave_idle(self) -> None:
        """Pages end their jobs or do not; the next one finds free cards and open nodes."""
        if names := self._live_jobs():
            self.cluster.cli("cancel", *names)
        self.cluster.until(lambda: not self._live_jobs(), "the page's jobs have ended", 60.0)
        for node in self.cluster.ok("nodes", "-o", "json").json["nodes"]:
            if node.get("cordoned"):
                self.cluster.ok("node", "uncordon", node["name"].removeprefix("nodes/"))

    def _live_jobs(self) -> list[str]:
        jobs = self.cluster.ok("jobs", "-o", "json").json.get("jobs", [])
        return [f"{job['tenant']}/{job['name'].rpartition('/')[2]}" for job in jobs]


def stand_ins() -> dict[str, str]:
    """What leads programs to modules that stand in for those not installed here."""
    return {} if importlib.util.find_spec("torch") else {"PYTHONPATH": str(STAND_INS)}


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One cluster for all pages that a worker runs."""
    cluster = UpCluster(tmp_path_factory.mktemp("pages"), SHAPE)
    try:
        cluster.start("--stop-jobs")
        yield Stage(cluster)
    finally:
        cluster.close()
