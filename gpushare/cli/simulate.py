"""`gpushare simulate`: the production scheduling code on a trace, without a cluster.

Imports click; the simulation, and with it the core, only when the command runs. Invariant: on input that cannot be used
nothing is written.
"""

from __future__ import annotations

import gc
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from gpushare.cli.options import JSON, TABLE

if TYPE_CHECKING:
    from gpushare.sim.driver import Simulation
    from gpushare.sim.outcome import Summary
    from gpushare.sim.traces import TraceJob, TraceNode, TraceTenant
    from gpushare.weights import PolicyWeights

NATIVE = "native"
OPENB = "openb"
_DEFAULT_FILES = {
    NATIVE: ("nodes.csv", "jobs.csv"),
    OPENB: ("openb_node_list_gpu_node.csv", "openb_pod_list_default.csv"),
}
_ARRIVALS = 42_000
_SEED_MAX = 2**63 - 1
_FACTOR_MAX = 100

_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


def _factor(ctx: click.Context, param: click.Parameter, value: str | None) -> Fraction | None:
    """A decimal above 0 as an exact fraction."""
    if value is None:
        return None
    if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", value) is None or not 0 < Fraction(value) <= _FACTOR_MAX:
        raise click.BadParameter(f"{value!a} is no factor; accepted: a decimal above 0 up to {_FACTOR_MAX}, e.g. 1.3")
    return Fraction(value)


class _Input(NamedTuple):
    nodes: list[TraceNode]
    jobs: list[TraceJob]
    tenants: list[TraceTenant] | None


@click.command()
@click.option("--nodes", "nodes_path", type=_FILE, metavar="FILE", help="The cluster (nodes.csv).")
@click.option("--jobs", "jobs_path", type=_FILE, metavar="FILE", help="The jobs, by arrival (jobs.csv).")
@click.option("--tenants", "tenants_path", type=_FILE, metavar="FILE", help="Weights, guarantees and limits.")
@click.option(
    "--trace-format",
    type=click.Choice([NATIVE, OPENB]),
    default=NATIVE,
    help=f"The files' columns; {OPENB} is the public trace ({_DEFAULT_FILES[OPENB][0]} and "
    f"{_DEFAULT_FILES[OPENB][1]} where no file is named).",
)
@click.option("--policy", metavar="P", default="", help="Placement policy; the scheduler's default if not given.")
@click.option("--weight", "weights", multiple=True, metavar="K=V", help="A weight of the policy, as in scheduler.toml.")
@click.option("--seed", type=click.IntRange(0, _SEED_MAX), default=0, help="Decides all ties and all draws (0).")
@click.option("--once", is_flag=True, help="Each job is tried once when it arrives, and lost if it does not fit.")
@click.option(
    "--inflate",
    callback=_factor,
    metavar="F",
    help="Shuffle the jobs and draw on until they ask for F times the GPUs; each tried once, nothing leaves.",
)
@click.option(
    "--departures",
    callback=_factor,
    metavar="LOAD",
    help="Draw a steady stream of jobs that come and go and ask for LOAD times the GPUs; each tried once.",
)
@click.option("--arrivals", type=click.IntRange(1, 10_000_000), help=f"How many jobs --departures draws ({_ARRIVALS}).")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the placements.")
@click.option("--summary", type=click.Choice([TABLE, JSON]), default=TABLE, help="How to print what came out.")
def simulate(
    nodes_path: Path | None,
    jobs_path: Path | None,
    tenants_path: Path | None,
    trace_format: str,
    policy: str,
    weights: tuple[str, ...],
    seed: int,
    once: bool,
    inflate: Fraction | None,
    departures: Fraction | None,
    arrivals: int | None,
    out: Path | None,
    summary: str,
) -> None:
    """Run the scheduler's own code on a trace, and say where every job went."""
    if inflate is not None and departures is not None:
        raise click.UsageError("--inflate and --departures exclude each other")
    if arrivals is not None and departures is None:
        raise click.UsageError("--arrivals belongs to --departures")
    if out is not None and not out.absolute().parent.is_dir():
        raise click.UsageError(f"--out: there is no directory {str(out.absolute().parent)!r}")
    policy = _check_policy(policy)
    weighed = _check_weights(policy, weights)
    given = _read(trace_format, nodes_path, jobs_path, tenants_path)
    is_drawn = inflate is not None or departures is not None
    jobs = _draw(given, inflate, departures, arrivals or _ARRIVALS, seed) if is_drawn else given.jobs
    with _progress(len(jobs)) as told:
        simulation = _simulation(given, jobs, policy, weighed, seed, once=once or is_drawn, on_progress=told)
        _run(simulation)
    found = _outcome(simulation, seed, is_steady=departures is not None, out=out)
    if summary == JSON:
        _print_json(found)
    else:
        _print_table(found, out)


def _check_policy(policy: str) -> str:
    try:
        from gpushare.sim.cluster import policies
    except ModuleNotFoundError as err:
        raise click.ClickException(
            f"simulate runs the scheduler's code, which needs {err.name} (pip install 'gpushare-cluster[scheduler]')"
        ) from None
    known = policies()
    if policy and policy not in known:
        raise click.UsageError(f"--policy: no policy {policy!r}; accepted: {', '.join(known)}")
    return policy or known[0]


def _check_weights(policy: str, words: Sequence[str]) -> PolicyWeights:
    """Each is a key of the policy's table in scheduler.toml and its value."""
    import msgspec

    from gpushare.configfile import ConfigError, Setting, build
    from gpushare.weights import PolicyWeights

    usual = PolicyWeights()
    own = getattr(usual, policy, None)
    if not words:
        return usual
    if own is None:
        raise click.UsageError(f"--weight: policy {policy} has no weights")
    said: dict[str, Setting] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key in said:
            raise click.UsageError(f"--weight {word!r}: accepted: K=V, each key once")
        said[key] = Setting(value, "flag --weight")
    try:
        return msgspec.structs.replace(usual, **{policy: build(type(own), [said])[0]})
    except ConfigError as err:
        raise click.UsageError(str(err)) from None


def _read(trace_format: str, nodes: Path | None, jobs: Path | None, tenants: Path | None) -> _Input:
    from gpushare.sim import traces
    from gpushare.sim.tables import TableError

    if trace_format == OPENB and tenants is not None:
        raise click.UsageError(f"--tenants: jobs of --trace-format {OPENB} have no tenant")
    nodes_path = nodes or _default_file(trace_format, 0, "--nodes")
    jobs_path = jobs or _default_file(trace_format, 1, "--jobs")
    try:
        if trace_format == OPENB:
            return _Input(traces.read_openb_nodes(nodes_path), traces.read_openb_jobs(jobs_path), None)
        known = None if tenants is None else traces.read_tenants(tenants)
        return _Input(traces.read_nodes(nodes_path), traces.read_jobs(jobs_path, known), known)
    except TableError as err:
        raise click.ClickException(str(err)) from None


def _default_file(trace_format: str, place: int, option: str) -> Path:
    path = Path(_DEFAULT_FILES[trace_format][place])
    if not path.is_file():
        raise click.UsageError(f"{option} is not given, and there is no {path} in this directory")
    return path


def _draw(
    given: _Input, inflate: Fraction | None, departures: Fraction | None, arrivals: int, seed: int
) -> list[TraceJob]:
    from gpushare.sim import workloads
    from gpushare.sim.traces import capacity_milli

    capacity = capacity_milli(given.nodes)
    try:
        if inflate is not None:
            return workloads.inflate(given.jobs, capacity, inflate, seed)
        return workloads.departures(given.jobs, capacity, departures or Fraction(1), arrivals, seed)
    except workloads.WorkloadError as err:
        raise click.ClickException(str(err)) from None


def _simulation(
    given: _Input,
    jobs: Sequence[TraceJob],
    policy: str,
    weights: PolicyWeights,
    seed: int,
    *,
    once: bool,
    on_progress: Callable[[int], None],
) -> Simulation:
    from gpushare.sim.driver import Simulation
    from gpushare.sim.workloads import node_order

    nodes = node_order(given.nodes, seed)
    return Simulation(nodes, jobs, given.tenants, policy=policy, weights=weights, once=once, on_progress=on_progress)


def _run(simulation: Simulation) -> None:
    from gpushare.sim.driver import SimulationError

    # What a simulation holds is much and has no cycles: looking through it for garbage takes a seventh of the time.
    gc.disable()
    try:
        simulation.run()
    except SimulationError as err:
        raise click.ClickException(f"the simulation broke off: {err} (report it, with the trace)") from None
    finally:
        gc.enable()


def _outcome(simulation: Simulation, seed: int, *, is_steady: bool, out: Path | None) -> Summary:
    from gpushare.sim import outcome, placements

    if out is not None:
        try:
            placements.write(out, outcome.placements(simulation))
        except OSError as err:
            raise click.ClickException(f"--out {str(out)!r} cannot be written: {err.strerror}") from None
    return outcome.summarise(simulation, seed=seed, is_steady=is_steady)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr where that is a terminal, else nothing."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TextColumn("jobs"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)


def _print_json(found: Summary) -> None:
    import msgspec

    json.dump(msgspec.to_builtins(found), sys.stdout, indent=2)
    sys.stdout.write("\n")


def _print_table(found: Summary, out: Path | None) -> None:
    from gpushare.cli.table import print_fields
    from gpushare.sim.measure import Spread

    def percent(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.2f} %"

    def times(value: Spread | None) -> str:
        if value is None:
            return ""
        return f"p50 {value.p50:.6g} s, p95 {value.p95:.6g} s, p99 {value.p99:.6g} s, mean {value.mean:.6g} s"

    refused = f", {found.refused} of them on no cluster of these nodes" if found.refused else ""
    idle = f" of the capacity, {percent(found.fragmentation_of_idle)} of what is idle"
    print_fields(
        [
            ("policy", f"{found.policy}, seed {found.seed}"),
            ("cluster", f"{found.nodes} nodes, {found.gpus} GPUs"),
            ("jobs", f"{found.placed} placed, {found.unplaced} unplaced{refused}"),
            ("allocation", f"{percent(found.allocation)}, {found.allocation_is}" if found.gpus else ""),
            ("  at full demand", percent(found.allocation_at_full_demand)),
            ("  peak", percent(found.allocation_peak)),
            ("  at the end", percent(found.allocation_final)),
            ("fragmentation", percent(found.fragmentation) + idle if found.fragmentation_of_idle is not None else ""),
            ("wait", times(found.wait_s)),
            ("JCT", times(found.jct_s)),
            ("fairness", "" if found.fairness is None else f"{found.fairness:.4f} (Jain)"),
            ("preemptions", found.preemptions),
            (
                "speed",
                f"{found.decisions_per_second:,.0f} decisions/s, {found.placements_per_second:,.0f} placements/s",
            ),
            ("passes", f"{found.passes}, p50 {found.pass_ms_p50:.3g} ms, p99 {found.pass_ms_p99:.3g} ms"),
            ("placements", "" if out is None else str(out)),
        ]
    )
