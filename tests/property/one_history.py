"""Plays one fixed history of random steps on the core and prints its journal; run under several hash seeds."""

import random
import sys
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parent.parent / "core"))

from cluster import Cluster

from gpushare.core.commands import RawResources

chance = random.Random(7)
cluster = Cluster(tenants=("t", "u"))
for name in ("n1", "n2", "n3"):
    cluster.node(name, 4)
for _ in range(400):
    step = chance.random()
    live = [j for j in cluster.state.jobs.values() if not j.is_ended]
    if step < 0.5 or not live:
        milli = chance.choice([100, 250, 333, 700])
        cluster.submit(
            chance.choice("tu"),
            resources=RawResources(gpu_milli=milli),
            tasks=chance.randint(1, 3),
            labels={"a": "1", "b": "2"},
        )
    elif step < 0.7:
        cluster.finish(chance.choice(live), chance.choice([0, 1]))
    elif step < 0.8:
        cluster.cancel(chance.choice(live))
    else:
        cluster.tick(chance.randint(0, 5000))
        cluster.cycle()
for entry in cluster.journal:
    print(msgspec.json.encode(entry).decode())
