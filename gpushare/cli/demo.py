"""`gpushare demo`: the main job, end to end, on simulated cards in about half a minute.

Imports click; the rest when the command runs. It drives the real command line against a real scheduler and real
agents, and checks what it shows: whatever is not as it should be ends it with code 1.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from gpushare.cli.demostage import Stage

_SHAPE = "2x2xH100-80GB"
_ADMIN = "admin"
_ADA = "ada"  # of tenant vision
_BOB = "bob"  # of tenant nlp
_SHARED_SECONDS = 15
_GREEDY_MIB = 60 * 1024
_TASK_LINE = 'echo "task $GPUSHARE_TASK_INDEX of $GPUSHARE_TASK_COUNT on $GPUSHARE_NODE: $CUDA_VISIBLE_DEVICES"'


@click.command()
@click.option(
    "--dir",
    "directory",
    metavar="DIR",
    default=".demo/run",
    type=click.Path(path_type=Path),
    help="Where to keep all of it.",
)
def demo(directory: Path) -> int:
    """Two tenants share one simulated card, end to end, in about half a minute.

    Real daemons, real processes, simulated cards. Everything is kept in DIR, which is made anew each time.
    """
    from gpushare.cli.demostage import DemoFailed, Stage

    began_s = time.monotonic()
    stage = Stage(directory.absolute(), _SHAPE)
    try:
        try:
            _play(stage)
        finally:
            _title("End: stop the daemons; nothing may be left but the directory")
            stage.end()
    except DemoFailed as err:
        print(f"error: INTERNAL: the demo expected {err.expected}, but found {err.found}", file=sys.stderr)
        print(f"note: the logs of the daemons are below {stage.directory / 'up'}", file=sys.stderr)
        return 1
    print(f"\nThe demo did all of this in {time.monotonic() - began_s:.0f} s. Its files are in {stage.directory}.")
    return 0


def _play(stage: Stage) -> None:
    _title(f"1. A cluster of two nodes with two cards each ({_SHAPE}), simulated")
    stage.begin()
    _title("2. Two tenants with one user each")
    _add_person(stage, "vision", _ADA)
    _add_person(stage, "nlp", _BOB)
    _title("3. Both tenants' jobs on one card at the same moment")
    _share_a_card(stage)
    _title("4. A job that takes more memory than its slice is stopped by the agent")
    _overrun(stage)
    _title("5. A job waits, says why, and starts when another one is cancelled")
    _wait_and_start(stage)
    _title("6. The output of a running job, followed to its end")
    _follow_logs(stage)
    _title("7. A gang of four tasks starts together on two nodes")
    _gang(stage)
    _title("8. What each tenant is charged for: the part of a card that nobody else could have, times seconds")
    _charge(stage)


def _title(text: str) -> None:
    print(f"\n== {text}", flush=True)


def _expect(condition: bool, expected: str, found: object) -> None:
    from gpushare.cli.demostage import DemoFailed

    if not condition:
        raise DemoFailed(expected, str(found))


def _add_person(stage: Stage, tenant: str, user: str) -> None:
    stage.call(_ADMIN, "tenant", "create", tenant, "--limit", "4")
    print(f"  {_ADMIN}$ gpushare token create {user} --tenant {tenant}", flush=True)
    stage.log_in(user, stage.ask(_ADMIN, "token", "create", user, "--tenant", tenant)["join"])


def _simwork(memory: str, seconds: int, *more: str) -> list[str]:
    return ["--", "gpushare-simwork", "--memory", memory, "--seconds", str(seconds), *more]


def _share_a_card(stage: Stage) -> None:
    training = ["--name", "train", *_simwork("20G", _SHARED_SECONDS)]
    stage.call(_ADA, "submit", "--gpus", "0.5", "--gpu-memory", "30G", *training)
    stage.call(_BOB, "submit", "--gpus", "0.25", "--name", "serve", *_simwork("10G", _SHARED_SECONDS))
    stage.wait_for_job(_ADA, "train", "RUNNING")
    stage.wait_for_job(_BOB, "serve", "RUNNING")
    running = stage.ask(_ADMIN, "jobs", "--state", "RUNNING")["jobs"]
    cards = {uuid for job in running for task in job["tasks"] for uuid in task["gpuUuids"]}
    tenants = {job["tenant"] for job in running}
    _expect(len(cards) == 1 and tenants == {"vision", "nlp"}, "two tenants on one card", f"{tenants} on {cards}")
    _print_slices(running)


def _print_slices(jobs: list[Any]) -> None:
    from gpushare.cli.table import print_table

    columns = ("TENANT", "USER", "JOB", "TASK", "NODE", "GPU", "MILLI", "MIB", "TIER", "ENFORCEMENT")
    rows = []
    for job in jobs:
        for task in job["tasks"]:
            for uuid in task["gpuUuids"]:
                who = (job["tenant"], job["createdBy"]["user"], f"{job['id']} ({job['spec'].get('name', '')})")
                slice_ = (task["gpuMilli"], task["gpuMemoryMib"])
                fence = task["enforcement"].removeprefix("ENFORCEMENT_").lower()
                rows.append((*who, task["taskIndex"], task["node"], uuid, *slice_, task["tier"], fence))
    print()
    print_table(columns, rows)
    print()


def _overrun(stage: Stage) -> None:
    stage.call(_BOB, "submit", "--gpus", "0.25", "--name", "greedy", *_simwork("60G", 60, "--ignore-limit"))
    job = stage.wait_for_job(_BOB, "greedy", "FAILED", "SUCCEEDED", "CANCELLED")
    task = job["tasks"][0]
    _expect(job["state"] == "JOB_STATE_FAILED", "the greedy job to fail", job["state"])
    _expect(job["reason"] == "MEMORY_LIMIT", "it to end with MEMORY_LIMIT", f"{job['reason']}: {job['detail']}")
    limit_mib, said = task["gpuMemoryMib"], f"{job['detail']} {task['detail']}"
    figures = f"both figures, {_GREEDY_MIB} and {limit_mib} MiB"
    _expect(str(_GREEDY_MIB) in said and limit_mib in said, figures, said)
    stage.call(_BOB, "job", "greedy")
    for person, name in ((_ADA, "train"), (_BOB, "serve")):
        state = stage.ask(person, "job", name)["state"]
        _expect(state in ("JOB_STATE_RUNNING", "JOB_STATE_SUCCEEDED"), f"its neighbour {name} to be unharmed", state)
    print(f"  stopped: it used {_GREEDY_MIB} MiB and its slice has {limit_mib} MiB; its neighbours are unharmed")


def _wait_and_start(stage: Stage) -> None:
    stage.call(_ADA, "submit", "--gpus", "2", "--name", "big", *_simwork("40G", 60))
    stage.wait_for_job(_ADA, "big", "RUNNING")
    stage.call(_ADA, "submit", "--gpus", "2", "--name", "next", *_simwork("40G", 2))
    stage.wait_for(
        "job next to wait with a reason",
        lambda: stage.ask(_ADA, "job", "next").get("wait", {}).get("reason", "SCHEDULING") not in ("", "SCHEDULING"),
        lambda: str(stage.ask(_ADA, "job", "next")["state"]),
    )
    stage.call(_ADA, "explain", "next")
    explanation = stage.ask(_ADA, "explain", "next")
    _expect(explanation["state"] == "JOB_STATE_QUEUED", "job next to be queued", explanation["state"])
    _expect(bool(explanation["wait"]["detail"]), "a sentence that says why", explanation["wait"])
    stage.call(_ADA, "cancel", "big")
    cancelled = stage.wait_for_job(_ADA, "big", "CANCELLED", "FAILED", "SUCCEEDED")
    _expect(cancelled["state"] == "JOB_STATE_CANCELLED", "job big to be cancelled", cancelled["state"])
    _expect(cancelled["cancelledBy"]["user"] == _ADA, "the record to say by whom", cancelled["cancelledBy"])
    started = stage.wait_for_job(_ADA, "next", "STARTING", "RUNNING", "SUCCEEDED")
    print(f"  big is cancelled by {_ADA}; next has its cards and is {started['state'].removeprefix('JOB_STATE_')}")
    stage.call(_ADA, "wait", "next")


def _follow_logs(stage: Stage) -> None:
    printed = stage.follow(_BOB, "logs", "-f", "serve")
    _expect("step 1:" in printed and "done" in printed, "its first and its last line", printed[-200:])
    stage.call(_ADA, "wait", "train")


def _gang(stage: Stage) -> None:
    command = ["--", "sh", "-c", f"{_TASK_LINE}; exec gpushare-simwork --memory 8G --seconds 2"]
    printed = stage.follow(_BOB, "run", "--gpus", "1", "--tasks", "4", "--name", "gang", *command)
    for task in range(4):
        _expect(f"task {task} of 4 on node-" in printed, f"a line of task {task}", printed[-400:])
    job = stage.ask(_BOB, "job", "gang")
    nodes = {task["node"] for task in job["tasks"]}
    moments = {task["allocateTime"] for task in job["tasks"]}
    _expect(nodes == {"node-1", "node-2"}, "its tasks on two nodes", nodes)
    _expect(len(moments) == 1, "one moment at which all four got their cards", moments)
    _print_slices([job])


def _charge(stage: Stage) -> None:
    stage.call(_ADMIN, "usage", "--by", "tenant")
    stage.call(_ADMIN, "usage", "--by", "job")
    rows = stage.ask(_ADMIN, "usage", "--by", "tenant")["rows"]
    charged = {row["tenant"]: int(row["chargeMilliSeconds"]) for row in rows}
    for tenant in ("vision", "nlp"):
        seconds = charged.get(tenant, 0) / 1000
        _expect(seconds > 0, f"charge-seconds of tenant {tenant}", charged)
        print(f"  tenant {tenant}: {seconds:.3f} charge-seconds")
