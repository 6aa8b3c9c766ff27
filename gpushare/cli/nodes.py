"""`gpushare nodes`, `gpus` and `node ...`: the machines, their cards, and what an admin does with them.

Imports click; the client only when a command runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gpushare.cli.options import JSON, WIDE, output_option
from gpushare.cli.session import with_client

if TYPE_CHECKING:
    from gpushare.client.aio import AsyncClient
    from gpushare.client.messages import Gpu, Node, Stranger

_NODE_COLUMNS = ("NODE", "STATE", "READY", "CARDS", "IN USE", "CPUS", "MEMORY", "CONTAINMENT", "REASON")
_NODE_WIDE_COLUMNS = (
    *_NODE_COLUMNS, "DRIVER", "AGENT", "SEEN", "IDLE SINCE", "POWER", "OVERCOMMIT", "TRUSTED", "LABELS",
    "SHARED PATHS", "DETAIL",
)  # fmt: skip
_GPU_COLUMNS = ("NODE", "#", "GPU", "MODEL", "STATE", "MILLI", "MIB", "TIERS", "JOBS", "STRANGERS", "REASON")
_GPU_WIDE_COLUMNS = (
    *_GPU_COLUMNS, "HELD BY", "USED", "SM", "POWER", "TEMP", "NOT OFFERED", "SIMULATED", "DETAIL",
)  # fmt: skip


@click.command()
@output_option
@with_client
async def nodes(client: AsyncClient, output: str) -> None:
    """List nodes."""
    from gpushare.cli.output import print_json_list
    from gpushare.cli.table import print_table

    found = [node async for node in client.list_nodes()]
    if output == JSON:
        print_json_list("nodes", found)
    elif output == WIDE:
        print_table(_NODE_WIDE_COLUMNS, [(*_node_row(node), *_node_wide_cells(node)) for node in found])
    else:
        print_table(_NODE_COLUMNS, [_node_row(node) for node in found])


@click.command()
@output_option
@with_client
async def gpus(client: AsyncClient, output: str) -> None:
    """List cards: what is in use of each, and how it can fence a share."""
    from gpushare.cli.output import as_json, print_json
    from gpushare.cli.table import print_table

    found = [(node, gpu) async for node in client.list_nodes() for gpu in node.gpus]
    if output == JSON:
        print_json({"gpus": [{"node": node.name, **as_json(gpu)} for node, gpu in found]})
    elif output == WIDE:
        print_table(_GPU_WIDE_COLUMNS, [(*_gpu_row(node, gpu), *_gpu_wide_cells(gpu)) for node, gpu in found])
    else:
        print_table(_GPU_COLUMNS, [_gpu_row(node, gpu) for node, gpu in found])


@click.group()
def node() -> None:
    """Cordon, drain, set or enrol a node (admin)."""


@node.command()
@click.option("--detail", default="", metavar="TEXT", help="Why; shown with the node.")
@output_option
@click.argument("name", metavar="NODE")
@with_client
async def cordon(client: AsyncClient, name: str, detail: str, output: str) -> None:
    """Start no new task there; running ones stay."""
    _print_node(await client.cordon_node(_resource(name), detail=detail), output)


@node.command()
@output_option
@click.argument("name", metavar="NODE")
@with_client
async def uncordon(client: AsyncClient, name: str, output: str) -> None:
    """Take a cordon or a drain back."""
    _print_node(await client.uncordon_node(_resource(name)), output)


@node.command()
@click.option("--detail", default="", metavar="TEXT", help="Why; shown with the node.")
@click.option("--wait", is_flag=True, help="Until its last task has ended.")
@click.option("--timeout", metavar="TIME", help="With --wait: no longer than this; the drain stays in force.")
@output_option
@click.argument("name", metavar="NODE")
@with_client
async def drain(
    client: AsyncClient, name: str, detail: str, wait: bool, timeout: str | None, output: str
) -> int | None:
    """Cordon it; it is drained when its last task has ended."""
    from gpushare.cli.draining import wait_drained
    from gpushare.quantity import parse_duration_ms

    if timeout is not None and not wait:
        raise click.UsageError("--timeout is for --wait")
    limit_s = None if timeout is None else parse_duration_ms(timeout, "timeout") / 1000
    drained = await client.drain_node(_resource(name), detail=detail)
    if wait and not drained.drained:
        ended = await wait_drained(client, drained, limit_s)
        if isinstance(ended, int):
            return ended
        drained = ended
    _print_node(drained, output)
    return None


@node.command("set")
@click.option(
    "--compute-overcommit",
    metavar="FACTOR",
    help="Shares on each card may add up to so much of it: 1 to 10, e.g. 1.5. Memory is never overcommitted.",
)
@click.option(
    "--trust-logins",
    type=click.Choice(["on", "off"]),
    help="Whether its word about who is logged in there counts: its people then need no line from an admin (off).",
)
@output_option
@click.argument("name", metavar="NODE")
@with_client
async def set_(
    client: AsyncClient, name: str, compute_overcommit: str | None, trust_logins: str | None, output: str
) -> None:
    """Change what an admin sets of a node."""
    from gpushare.quantity import parse_thousandths

    if compute_overcommit is None and trust_logins is None:
        raise click.UsageError("nothing to change; give --compute-overcommit or --trust-logins")
    milli = None
    if compute_overcommit is not None:
        accepted = 'a factor from 1 to 10 in steps of 0.001 ("1.5")'
        milli = parse_thousandths(compute_overcommit, "compute_overcommit", accepted, minimum=1000, maximum=10_000)
    trusted = None if trust_logins is None else trust_logins == "on"
    changed = await client.update_node(_resource(name), compute_overcommit_milli=milli, trust_logins=trusted)
    _print_node(changed, output)


@node.command("declare-dead")
@output_option
@click.argument("name", metavar="NODE")
@with_client
async def declare_dead(client: AsyncClient, name: str, output: str) -> None:
    """Free what a silent node holds. Only for a machine that is known to be off: its tasks may start elsewhere."""
    _print_node(await client.declare_node_dead(_resource(name)), output)


@node.command("join-token")
@click.option("--ttl", metavar="TIME", help="How long it can be used (1h).")
@output_option
@click.argument("name", metavar="NODE")
@with_client
async def join_token(client: AsyncClient, name: str, ttl: str | None, output: str) -> None:
    """Print the single-use line with which one agent enrols as NODE."""
    from gpushare.cli.output import print_json
    from gpushare.quantity import parse_duration_ms

    answer = await client.create_join_token(name, ttl_ms=parse_duration_ms(ttl, "ttl") if ttl is not None else None)
    if output == JSON:
        print_json(answer)
    else:
        print(answer.join)


def _resource(name: str) -> str:
    return name if name.startswith("nodes/") else f"nodes/{name}"


def _print_node(node: Node, output: str) -> None:
    from gpushare.cli.output import print_json
    from gpushare.cli.table import print_table

    if output == JSON:
        print_json(node)
    elif output == WIDE:
        print_table(_NODE_WIDE_COLUMNS, [(*_node_row(node), *_node_wide_cells(node))])
    else:
        print_table(_NODE_COLUMNS, [_node_row(node)])


def _node_row(node: Node) -> tuple[object, ...]:
    from gpushare.cli import output as o
    from gpushare.client.messages import NodeState

    state = _asleep(node) or o.word(NodeState, node.state)
    if node.drained:
        state += ",drained"
    elif node.cordoned:
        state += ",cordoned"
    in_use_milli = sum(gpu.allocated_milli for gpu in node.gpus)
    return (
        o.short_name(node.name),
        state,
        "yes" if node.ready else "no",
        len(node.gpus),
        o.milli_text(in_use_milli),
        f"{o.cpus_text(node.allocated_cpu_milli)}/{o.cpus_text(node.cpu_milli)}",
        f"{o.memory_text(node.allocated_memory_mib) or '0'}/{o.memory_text(node.memory_mib) or '0'}",
        node.containment,
        "; ".join(filter(None, (node.reason, _clock_sentence(node.clock_skew_ms), _warning_sentence(node)))),
    )


def _asleep(node: Node) -> str:
    """A node that was sent to sleep is out of reach and nothing is wrong; "" for one that is to be awake."""
    from gpushare.client.messages import Power

    if node.power == Power.POWER_WAKING:
        return "WAKING"
    if node.power != Power.POWER_DOWN:
        return ""
    return "GOING_DOWN" if node.ready else "ASLEEP"


def _clock_sentence(skew_ms: int) -> str:
    from gpushare.cli.output import short_duration

    if not skew_ms:
        return ""
    return f"its clock is {short_duration(abs(skew_ms) // 1000)} {'ahead' if skew_ms > 0 else 'behind'}"


def _warning_sentence(node: Node) -> str:
    """That there is something to mend; the sentences themselves are too long for a column."""
    count = len(node.warnings)
    return f"{count} warning{'s' if count > 1 else ''} (-o wide)" if count else ""


def _node_wide_cells(node: Node) -> tuple[object, ...]:
    from gpushare.cli import output as o
    from gpushare.client.messages import Power

    return (
        node.driver_version,
        node.agent_version,
        o.time_text(node, "last_seen_time"),
        o.time_text(node, "idle_since_time"),
        o.word(Power, node.power).lower(),
        o.milli_text(node.compute_overcommit_milli),
        "yes" if node.trust_logins else "no",
        " ".join(f"{key}={value}" for key, value in sorted(node.labels.items())),
        " ".join(node.shared_paths),
        "; ".join(filter(None, (node.detail, *node.warnings))),
    )


def _gpu_row(node: Node, gpu: Gpu) -> tuple[object, ...]:
    from gpushare.cli import output as o
    from gpushare.client.messages import GpuState

    offered = [f"{offer.tier}({o.fence(offer.enforcement)})" for offer in gpu.tiers if not offer.absent_because]
    return (
        o.short_name(node.name),
        gpu.index,
        gpu.uuid,
        gpu.model,
        o.word(GpuState, gpu.state),
        f"{gpu.allocated_milli}/{gpu.capacity_milli or 1000}",
        f"{gpu.allocated_mib}/{gpu.usable_mib}",
        ",".join(offered),
        len(gpu.attempt_ids),
        ", ".join(_stranger(each) for each in gpu.strangers),
        gpu.reason,
    )


def _stranger(found: Stranger) -> str:
    """Who it is; only its memory where the caller may not see whose process it is."""
    whose = f"pid {found.pid} of {found.user or 'an unknown user'}: " if found.pid else ""
    return f"{whose}{found.memory_mib} MiB"


def _gpu_wide_cells(gpu: Gpu) -> tuple[object, ...]:
    sample = gpu.sample
    absent = "; ".join(f"{offer.tier}: {offer.absent_because}" for offer in gpu.tiers if offer.absent_because)
    # "vision.42.0.1" is a try of job vision/42.
    jobs = dict.fromkeys("/".join(attempt.split(".")[:2]) for attempt in gpu.attempt_ids)
    return (
        " ".join(jobs),
        f"{sample.used_mib}MiB" if gpu.HasField("sample") else "",
        f"{sample.sm_percent}%" if sample.HasField("sm_percent") else "",
        f"{sample.power_mw / 1000:.0f}W" if sample.HasField("power_mw") else "",
        f"{sample.temperature_c}C" if sample.HasField("temperature_c") else "",
        absent,
        "yes" if gpu.simulated else "no",
        gpu.detail,
    )
