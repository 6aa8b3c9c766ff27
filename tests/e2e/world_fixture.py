"""The fixture `world`: one cluster for all tests of a worker that take it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from live_cluster import live_cluster
from shared_cluster import NODES, World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The cluster with its people; at the end everything is ended and must be gone."""
    running = live_cluster(tmp_path_factory.mktemp("world") / "home", NODES)
    with asyncio.Runner() as runner:
        found = World(runner, runner.run(running.__aenter__()))
        try:
            found.do(found.open())
            yield found
            found.do(found.close())
        except BaseException as err:
            runner.run(running.__aexit__(type(err), err, err.__traceback__))
            raise
        runner.run(running.__aexit__(None, None, None))
