"""Nodes that sleep and wake by the admin's hooks: here the hooks ask this test, which kills and starts real agents."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from live_cluster import LiveCluster, live_cluster, run, until

from gpushare.client.messages import Node, Power

# Says what it wants, and waits until that is done; "refuse" stands for a host that cannot be put to sleep.
HOOK = """
cd "$1" || exit 2
if [ "$2" = down ] && [ -e refuse ]; then echo "begun"; echo "$3: the management board does not answer"; exit 3; fi
touch "$3.$2"
while [ -e "$3.$2" ]; do sleep 0.05; done
"""


class MachineRoom:
    """The switches of the hosts. `asked` is what the hooks asked for, in order."""

    def __init__(self, home: Path) -> None:
        self.desk = home / "desk"
        self.desk.mkdir(parents=True)
        self.hook = home / "hook.sh"
        self.hook.write_text(HOOK)
        self.asked: list[str] = []

    def command(self, verb: str) -> tuple[str, ...]:
        return ("/bin/sh", str(self.hook), str(self.desk), verb, "{node}")

    def requests(self) -> list[str]:
        return sorted(path.name for path in self.desk.iterdir() if path.name != "refuse")

    @asynccontextmanager
    async def attended(self, cluster: LiveCluster) -> AsyncIterator[None]:
        """Somebody does what the hooks ask for."""
        attendant = asyncio.create_task(self._attend(cluster))
        try:
            yield
        finally:
            attendant.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await attendant

    async def _attend(self, cluster: LiveCluster) -> None:
        while True:
            for request in self.requests():
                node, _, verb = request.partition(".")
                self.asked.append(request)
                if verb == "down" and cluster.agents[node].running:
                    cluster.agents[node].kill()
                if verb == "up" and not cluster.agents[node].running:
                    cluster.agents[node].start()
                (self.desk / request).unlink()
            await asyncio.sleep(0.05)


async def node_when(cluster: LiveCluster, name: str, power: str, ready: bool) -> Node:
    wanted = Power.Value(f"POWER_{power}")

    async def found() -> Node | None:
        node = await cluster.node(name)
        return node if node.power == wanted and node.ready == ready else None

    node = await until(found, f"{name} is {power}, ready={ready}")
    assert node is not None
    return node


def test_idle_nodes_sleep_and_the_one_that_a_job_needs_is_woken_for_it(tmp_path: Path) -> None:
    room = MachineRoom(tmp_path / "room")
    settings = {
        "power_idle_s": 1,
        "power_down_command": room.command("down"),
        "power_up_command": room.command("up"),
        "lease_ttl_s": 3,
    }

    async def body() -> None:
        async with live_cluster(tmp_path / "c", {"n1": "1xL40S", "n2": "2xH100-80GB"}, **settings) as cluster:
            for daemon in (cluster.scheduler, *cluster.agents.values()):
                daemon.base_fds = 0
            async with room.attended(cluster):
                for node in ("n1", "n2"):
                    await node_when(cluster, node, "DOWN", ready=False)
                (job,) = await cluster.submit(cluster.shell("sleep 0.1", gpus=2))
                ended = await cluster.ended([job])
                assert ended[job].tasks[0].node == "n2"
                assert (await cluster.node("n1")).power == Power.POWER_DOWN
                assert room.asked == ["n1.down", "n2.down", "n2.up"] or room.asked == ["n2.down", "n1.down", "n2.up"]
                # From now on nothing can be put to sleep: what failed is told, and the node stays in use.
                (room.desk / "refuse").touch()
                node = await node_when(cluster, "n2", "ON", ready=True)
                node = await until(lambda: told(cluster, "n2"), "the failure of the hook is told")
                assert node.detail == (
                    "power_down_command failed with exit code 3: n2: the management board does not answer"
                )
                (again,) = await cluster.submit(cluster.shell("exit 0", gpus=1, model="H100-80GB"))
                assert (await cluster.ended([again]))[again].tasks[0].node == "n2"
            # A scheduler that dies while it wakes a node: the next one asks again.
            (last,) = await cluster.submit(cluster.shell("exit 0", gpus=1, model="L40S"))
            await until(lambda: room.requests() == ["n1.up"], "the hook asks for n1")
            cluster.scheduler.kill()
            (room.desk / "n1.up").unlink()
            cluster.scheduler.start()
            await until(lambda: room.requests() == ["n1.up"], "the next scheduler asks for n1 again")
            async with room.attended(cluster):
                assert (await cluster.ended([last]))[last].tasks[0].node == "n1"
                await until(lambda: told(cluster, "n1"), "n1 stays awake")

    async def told(cluster: LiveCluster, name: str) -> Node | None:
        node = await cluster.node(name)
        return node if node.power == Power.POWER_ON and node.detail else None

    run(body)
