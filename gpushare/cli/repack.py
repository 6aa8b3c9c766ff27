"""`gpushare repack`: move suspendable jobs together, so that larger pieces come free. Never by itself.

Imports click; the client only when the command runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gpushare.cli.options import JSON, output_option
from gpushare.cli.session import with_client

if TYPE_CHECKING:
    from gpushare.client.aio import AsyncClient
    from gpushare.client.messages import RepackPlan


@click.command()
@click.option("--plan", "is_plan", is_flag=True, help="Show what would move and what comes free.")
@click.option("--apply", "is_apply", is_flag=True, help="Move it: the jobs are suspended meanwhile.")
@output_option
@with_client
async def repack(client: AsyncClient, is_plan: bool, is_apply: bool, output: str) -> None:
    """Move suspendable jobs to other cards of their node, so that larger pieces come free (admin)."""
    from gpushare.cli.output import print_json

    if is_plan == is_apply:
        raise click.UsageError("give one of --plan and --apply")
    plan = await client.plan_repack()
    if is_apply and plan.moves:
        moves = (await client.apply_repack([move.job for move in plan.moves])).moves
        del plan.moves[:]
        plan.moves.extend(moves)
    if output == JSON:
        print_json(plan)
    else:
        _print_plan(plan, is_apply=is_apply)


def _print_plan(plan: RepackPlan, *, is_apply: bool) -> None:
    from gpushare.cli import output as o
    from gpushare.cli.table import print_table

    if not plan.moves:
        print("nothing to move: no suspendable job could make a larger piece free")
        return
    print_table(
        ("JOB", "NODE", "FROM", "TO", "MEMORY"),
        [
            (
                o.short_name(move.job),
                move.node,
                ",".join(move.from_gpu_uuids),
                ",".join(move.to_gpu_uuids),
                o.memory_text(move.gpu_memory_mib),
            )
            for move in plan.moves
        ],
    )
    print()
    for opened in plan.opened:
        print(f"comes free: {opened.gpus} whole card{'' if opened.gpus == 1 else 's'} of {opened.node}")
    before, after = (o.milli_text(m) for m in (plan.largest_share_before_milli, plan.largest_share_after_milli))
    print(f"largest free share of a card: {before} now, {after} then")
    broken = plan.fragmentation_before_milli / 10, plan.fragmentation_after_milli / 10
    print(f"free, but not as whole cards: {broken[0]:g}% now, {broken[1]:g}% then")
    copied = o.memory_text(plan.gpu_memory_mib)
    if is_apply:
        print("they are on their way")
    else:
        print(f"cost: each of these jobs pauses once, {copied} are copied to the host and back")
        print("to do it: gpushare repack --apply")
