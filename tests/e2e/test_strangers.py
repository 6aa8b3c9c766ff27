"""A stranger on a card that gpushare manages, and cards that it does not: what people are shown, and where jobs go.

The agent is the real one on the unmodified `pynvml`, which loads a stand-in for the driver's library.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import subprocess
import sys
import time
from pathlib import Path

from live_cluster import LiveCluster, clean_environment, live_cluster, run, until
from standins.fake_nvml import FakeNvml, uuid_of

from gpushare.client.messages import Gpu

ME = pwd.getpwuid(os.geteuid()).pw_name
STRANGER_MIB = 20_000
MANAGED, UNMANAGED = (0, 1), 2
# Between two samples of cards on which nothing of ours runs, and what a busy machine may add.
IDLE_SAMPLE_S = 2.0
SLOW_S = 3.0


async def cards(cluster: LiveCluster) -> dict[str, Gpu]:
    return {gpu.uuid: gpu for gpu in (await cluster.node("n1")).gpus}


async def command(cluster: LiveCluster, *words: str) -> str:
    """What the command prints to the cluster's admin."""
    environ = clean_environment({"GPUSHARE_CONFIG": str(cluster.home / "cli.toml"), "COLUMNS": "400"})
    cli = [sys.executable, "-m", "gpushare.cli.main"]
    if not (cluster.home / "cli.toml").exists():
        join = (cluster.home / "scheduler" / "admin.join").read_bytes()
        login = [*cli, "login", "-"]
        await asyncio.to_thread(subprocess.run, login, input=join, env=environ, check=True, capture_output=True)
    done = await asyncio.to_thread(
        subprocess.run, [*cli, *words], env=environ, check=True, capture_output=True, text=True, timeout=60
    )
    return str(done.stdout)


async def body(home: Path) -> None:
    async with live_cluster(home) as cluster:
        fake = FakeNvml.with_cards(home / "driver", 3)
        names = ("LD_LIBRARY_PATH", "GPUSHARE_FAKE_NVML_STATE")
        environ = {name: value for name, value in fake.environ().items() if name in names}
        managed = tuple(uuid_of(card) for card in MANAGED)
        await cluster.add_agent(
            "n1", environ=environ, managed_gpus=managed, tiers=("timeslice", "exclusive"), watchdog_interval_ms=200
        )
        await cluster.ready()
        with contextlib.ExitStack() as stack:
            strangers = [subprocess.Popen(["sleep", "1000"]) for _ in range(2)]
            for stranger in strangers:
                stack.callback(stranger.wait)
                stack.callback(stranger.kill)
            for card, stranger in zip((1, UNMANAGED), strangers, strict=True):
                fake.process(card, stranger.pid, STRANGER_MIB)
                fake.cards[card].used_mib = STRANGER_MIB
            began_s = time.monotonic()
            fake.write()

            async def seen() -> bool:
                return bool((await cards(cluster))[uuid_of(1)].strangers)

            await until(seen, "the stranger is seen")
            assert time.monotonic() - began_s < 2 * IDLE_SAMPLE_S + SLOW_S

            # Placement keeps off the card: of two jobs for a whole card one finds the other card, one waits.
            whole = await cluster.submit(*(cluster.shell("sleep 60", gpus=1) for _ in range(2)))
            (job,) = await cluster.in_state(whole[:1], "RUNNING")
            assert list(job.tasks[0].gpu_uuids) == [uuid_of(0)]

            async def waits() -> bool:
                return (await cluster.job(whole[1])).wait.reason == "OCCUPIED"

            await until(waits, "the second waits")
            await check_what_people_see(cluster, strangers)
        fake.rows.clear()
        for card in fake.cards:
            card.used_mib = 0
        fake.write()
        (job,) = await cluster.in_state(whole[1:], "RUNNING")
        assert list(job.tasks[0].gpu_uuids) == [uuid_of(1)]
        for name in whole:
            await cluster.client.cancel_job(name)
        await cluster.ended(whole)
        assert fake.setters() == []


async def check_what_people_see(cluster: LiveCluster, strangers: list[subprocess.Popen[bytes]]) -> None:
    table = await command(cluster, "gpus")
    (line,) = [line for line in table.splitlines() if uuid_of(1) in line]
    assert f"pid {strangers[0].pid} of {ME}: {STRANGER_MIB} MiB" in line, table
    # What is not managed is no capacity, and whoever is there is nobody's business.
    for words in (("gpus",), ("gpus", "-o", "json"), ("nodes", "-o", "json")):
        shown = await command(cluster, *words)
        assert uuid_of(UNMANAGED) not in shown
        assert str(strangers[1].pid) not in shown
    assert len(json.loads(await command(cluster, "gpus", "-o", "json"))["gpus"]) == len(MANAGED)
    (row,) = (await cards(cluster))[uuid_of(1)].strangers
    assert (row.pid, row.user, row.memory_mib) == (strangers[0].pid, ME, STRANGER_MIB)


def test_a_stranger_is_kept_clear_of_and_named_and_unmanaged_cards_are_nobodys(tmp_path: Path) -> None:
    run(lambda: body(tmp_path / "c"))
