"""Labels of nodes, from an agent's configuration to where a job runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from live_cluster import live_cluster, run

from gpushare.errors import GpushareError
from gpushare.reasons import Reason


def test_a_job_runs_on_a_node_with_the_labels_it_asks_for_or_is_told_that_there_is_none(tmp_path: Path) -> None:
    async def body() -> None:
        async with live_cluster(tmp_path) as cluster:
            await cluster.add_agent("n1", "1xL40S", labels="rack=r1,site=a")
            await cluster.add_agent("n2", "1xL40S", labels="rack=r2,site=a")
            await cluster.ready()
            cluster.note_descriptors()
            assert dict((await cluster.node("n2")).labels) == {"rack": "r2", "site": "a"}
            names = []
            for rack in ("r2", "r1", "r2"):
                labels = {"rack": rack, "site": "a"}
                names += await cluster.submit(cluster.shell("exit 0", gpus="0.25", node_labels=labels))
            ended = await cluster.ended(names)
            assert [ended[name].tasks[0].node for name in names] == ["n2", "n1", "n2"]
            with pytest.raises(GpushareError, match="carries the labels") as refused:
                await cluster.submit(cluster.shell("exit 0", gpus="0.25", node_labels={"rack": "r3"}))
            assert refused.value.reason is Reason.NEVER_FITS

    run(body)
