"""The cluster that pages are run against: simulated cards, real daemons and real processes, a tenant for each page.

What a page finds that its reader would have by other means stands here and nowhere else: the programs on PATH, the
people of its tenant, and stand-ins for PyTorch and Jupyter where those are not installed (`stand_ins`).
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from pages import Seat, Typed, read_page, run_page
from upcluster import UpCluster

from gpushare.client.messages import Role, TenantSettings
from gpushare.client.settings import CONFIG_ENV, ConnectionSettings, load_settings, save_context
from gpushare.client.sync import Client

ROOT = Path(__file__).parents[2]
STAND_INS = Path(__file__).parent / "stand_ins"
SHAPE = "2x4xH100-80GB"


class Stage:
    """`run` plays one page; each has a tenant of its own, so that its jobs are numbered from 1."""

    def __init__(self, cluster: UpCluster) -> None:
        self.cluster = cluster
        self._settings = load_settings(environ={CONFIG_ENV: str(self._context_of("admin"))})
        self._admin = Client(self._settings, timeout_s=30.0)
        self._people: set[str] = set()

    def run(self, path: Path, directory: Path) -> list[Typed]:
        page = read_page(path)
        if tenant := page.options.get("tenant"):
            self._admin.create_tenant(tenant, TenantSettings())
        try:
            return run_page(page, directory, self._seat)
        finally:
            self._leave_idle()

    def newcomer(self, tenant: str, user: str) -> dict[str, str]:
        """The environment of somebody of a new tenant."""
        self._admin.create_tenant(tenant, TenantSettings())
        return dict(self._seat({"tenant": tenant, "user": user}).environment)

    def close(self) -> None:
        self._admin.close()

    def _seat(self, options: Mapping[str, str]) -> Seat:
        user = options.get("user", "admin")
        if user != "admin" and user not in self._people:
            known, tenant = self._settings, options["tenant"]
            token = self._admin.create_token(user, Role.ROLE_USER, tenant=tenant).secret
            settings = ConnectionSettings(known.server, token, known.ca_pem, tenant, user)
            save_context(self._context_of(user), "local", settings)
            self._people.add(user)
        environment = self.cluster.environment(user)
        return Seat({**environment, **stand_ins(environment)})

    def _leave_idle(self) -> None:
        """Pages end their jobs or do not; the next one finds free cards and open nodes."""
        live = [job.name for job in self._admin.list_jobs()]
        for name in live:
            self._admin.cancel_job(name)
        self._admin.wait_jobs(live)
        for node in self._admin.list_nodes():
            if node.cordoned:
                self._admin.uncordon_node(node.name)

    def _context_of(self, user: str) -> Path:
        return self.cluster.home / f"{user}.toml"


def stand_ins(environment: Mapping[str, str]) -> dict[str, str]:
    """What leads programs to those things that stand in for what is not installed here."""
    found = {}
    if importlib.util.find_spec("torch") is None:
        found["PYTHONPATH"] = str(STAND_INS)
    if shutil.which("jupyter", path=environment["PATH"]) is None:
        found["PATH"] = f"{STAND_INS / 'bin'}:{environment['PATH']}"
    return found


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One cluster for all pages that a worker runs."""
    cluster = UpCluster(tmp_path_factory.mktemp("pages"), SHAPE)
    try:
        cluster.start("--stop-jobs")
        stage = Stage(cluster)
        yield stage
        stage.close()
    finally:
        cluster.close()
