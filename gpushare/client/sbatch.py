"""`#SBATCH` lines -> options of `gpushare submit`.

Pure. Invariants: what is taken means here what it meant there, or it is refused with a word on what to write instead,
so that no line is skipped in silence; of an option that is given twice the last one counts. `docs/scripts.md` has the
table for people.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

from gpushare.client import slurmvalues as values
from gpushare.client.directives import SBATCH, Directive, DirectiveError, Setting
from gpushare.client.slurmvalues import Pairs, SlurmValueError

_Value = TypeVar("_Value")

# In place of --model: a type as Slurm has it, for the cluster's own names to be found by.
GPU_TYPE = "gpu-type"

# What is the same whatever else the script asks for.
_ALONE: dict[str, Callable[[str], Pairs]] = {
    "job-name": values.job_name,
    "time": values.time,
    "array": values.array,
    "output": lambda text: [("output", text)],
    "error": lambda text: [("error", text)],
    "chdir": lambda text: [("chdir", text)],
    "dependency": values.dependency,
    "export": values.export,
}
# What means something only together.
_SHAPE = frozenset({
    "nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "mem", "mem-per-cpu", "gpus", "gres", "gpus-per-node",
    "gpus-per-task",
})  # fmt: skip
TAKEN = frozenset(_ALONE) | _SHAPE

_LABEL = "write #GPUSHARE --node-label K=V to choose nodes"
_MAIL = "gpushare sends no mail; `gpushare wait JOB` returns when a job has ended"
_INSTEAD = {
    "account": "the tenant is charged; write #GPUSHARE --tenant NAME, or leave it out for your own",
    "begin": "there is no later start; submit it then",
    "comment": "write #GPUSHARE --label comment=TEXT",
    "constraint": _LABEL,
    "cpus-per-gpu": "write --cpus-per-task",
    "deadline": "write --time, and #GPUSHARE --start-within TIME to give up on a late start",
    "exclude": _LABEL,
    "exclusive": "nodes are shared, cards need not be: --gpus=N gives N cards to this job alone",
    "gpus-per-socket": "write --gpus-per-task",
    "hold": "there are no held jobs; submit it when it may run",
    "input": "a job's stdin is empty; have the script read the file",
    "kill-on-invalid-dep": "a job whose dependency cannot hold any more fails; leave it out",
    "mail-type": _MAIL,
    "mail-user": _MAIL,
    "mem-per-gpu": "write --mem for all cards together",
    "nice": "write #GPUSHARE --priority N",
    "no-requeue": "write #GPUSHARE --preemption cancel",
    "nodelist": _LABEL,
    "ntasks-per-core": "write --cpus-per-task",
    "ntasks-per-gpu": "write --ntasks and --gpus-per-task",
    "ntasks-per-socket": "write --ntasks",
    "open-mode": "output is always appended; leave it out",
    "oversubscribe": "write #GPUSHARE --gpus 0.25 for a share of a card",
    "partition": "gpushare has no partitions; choose cards by --gres=gpu:TYPE:N, nodes by #GPUSHARE --node-label K=V",
    "priority": "write #GPUSHARE --priority N",
    "qos": "write #GPUSHARE --qos burst or guaranteed, or #GPUSHARE --priority N",
    "requeue": "what is lost with its node runs again anyway; write #GPUSHARE --max-retries N for failures of its own, "
    "or --requeue-exit-code N",
    "reservation": "a reservation is there for its tenant's jobs without a word; leave it out",
    "signal": "write #GPUSHARE --signal USR1@1m for a signal before the time limit; the stop itself follows --grace",
    "wait": "use `gpushare run`, or `gpushare wait JOB`",
    "wckey": "write #GPUSHARE --label K=V",
}
_SHORT = {
    "A": "account", "C": "constraint", "D": "chdir", "G": "gpus", "H": "hold", "J": "job-name", "N": "nodes",
    "W": "wait", "a": "array", "b": "begin", "c": "cpus-per-task", "d": "dependency", "e": "error", "i": "input",
    "n": "ntasks", "o": "output", "p": "partition", "q": "qos", "s": "oversubscribe", "t": "time", "w": "nodelist",
    "x": "exclude",
}  # fmt: skip
_UNKNOWN = "is not taken; leave it out, or say it with #GPUSHARE and an option of `gpushare submit`"


class _Given(NamedTuple):
    """One option as it stands in the script, under its long name."""

    line: int
    option: str
    value: str

    def setting(self, option: str, value: str | int) -> Setting:
        return Setting(self.line, f"{SBATCH} --{self.option}", option, str(value))

    def refused(self, why: str) -> DirectiveError:
        return DirectiveError(self.line, f"{SBATCH} --{self.option}: {why}")


def settings_of(directives: Iterable[Directive], wrong: list[DirectiveError]) -> list[Setting]:
    """What the lines ask for, in options of `gpushare submit` and GPU_TYPE; what cannot be followed goes to `wrong`."""
    given: dict[str, _Given] = {}
    for directive in directives:
        for each in _options(directive, wrong):
            given.pop(each.option, None)
            given[each.option] = each
    settings: list[Setting] = []
    for each in given.values():
        if each.option in _ALONE:
            try:
                pairs = _value(each, _ALONE[each.option])
            except DirectiveError as err:
                wrong.append(err)
                continue
            settings += [each.setting(option, value) for option, value in pairs]
    try:
        return [*settings, *_shape(given)]
    except DirectiveError as err:
        wrong.append(err)
        return settings


def _options(directive: Directive, wrong: list[DirectiveError]) -> Iterator[_Given]:
    """Of one line, up to the first that says nothing that can be read on from."""
    words = list(directive.words)
    while words:
        word = words.pop(0)
        try:
            name, value = _split(directive.line, word)
        except DirectiveError as err:
            wrong.append(err)
            return
        if value is None and words and not words[0].startswith("-"):
            value = words.pop(0)
        if name in TAKEN and value:
            yield _Given(directive.line, name, value)
        elif name in TAKEN:
            wrong.append(DirectiveError(directive.line, f"{SBATCH} --{name}: there is no value"))
        elif name in _INSTEAD:
            wrong.append(DirectiveError(directive.line, f"{SBATCH} --{name}: {_INSTEAD[name]}"))
        else:
            told = f"{SBATCH} {word.partition('=')[0]}: {_meant(name)}{_UNKNOWN}"
            wrong.append(DirectiveError(directive.line, told))


def _meant(name: str) -> str:
    close = difflib.get_close_matches(name, sorted(TAKEN), n=1)
    return f"did you mean --{close[0]}? it " if close else ""


def _split(line: int, word: str) -> tuple[str, str | None]:
    """The long name of an option, and the value where it stands in the same word."""
    if word.startswith("--"):
        name, equals, value = word[2:].partition("=")
        return name, value if equals else None
    if word.startswith("-") and len(word) > 1:
        return _SHORT.get(word[1], ""), word[2:] or None
    raise DirectiveError(line, f"{SBATCH}: {word!a} belongs to no option")


def _value(given: _Given, parse: Callable[[str], _Value]) -> _Value:
    try:
        return parse(given.value)
    except SlurmValueError as err:
        raise given.refused(str(err)) from err


# -- tasks, and what each of them has


def _shape(given: dict[str, _Given]) -> list[Setting]:
    tasks, settings = _tasks(given)
    return [*settings, *_gpus(given, tasks), *_host(given, tasks)]


def _tasks(given: dict[str, _Given]) -> tuple[int, list[Setting]]:
    """How many, and close to each other where Slurm would have promised that."""
    nodes, total, per_node = given.get("nodes"), given.get("ntasks"), given.get("ntasks-per-node")
    most_nodes = _most_nodes(nodes) if nodes is not None else None
    source = total or per_node
    number = _value(source, values.count) if source is not None else 1
    if source is None or number == 1:
        return 1, []
    if number == 0:
        raise source.refused("there is no job of 0 tasks")
    if per_node is not None and number > _value(per_node, values.count):
        raise per_node.refused(
            "the scheduler chooses how many tasks a node takes; leave it out, or write --nodes=1 and --ntasks-per-node"
        )
    settings = [source.setting("tasks", number)]
    closest = nodes if most_nodes == 1 else per_node if most_nodes is None else None
    if closest is not None:
        settings.append(closest.setting("topology", "node"))
    elif nodes is not None and most_nodes is not None and most_nodes < number:
        raise nodes.refused(f"{number} tasks go to one node (--nodes=1) or to any; write --nodes=1 or leave it out")
    return number, settings


def _most_nodes(nodes: _Given) -> int:
    low, dash, high = nodes.value.partition("-")
    least = _value(nodes._replace(value=low), values.count)
    most = _value(nodes._replace(value=high), values.count) if dash else least
    if least != 1 or most < 1:
        raise nodes.refused(
            "gpushare places tasks and not nodes; write --ntasks=N for N tasks, each of which runs the script with "
            "cards of its own, or --nodes=1"
        )
    return most


def _gpus(given: dict[str, _Given], tasks: int) -> list[Setting]:
    sources = [given[name] for name in ("gpus", "gres", "gpus-per-node", "gpus-per-task") if name in given]
    if not sources:
        return []
    first, *others = sorted(sources)
    if others:
        raise others[0].refused(f"--{first.option} in line {first.line} counts the GPUs already; keep one of them")
    if tasks > 1 and first.option != "gpus-per-task":
        raise first.refused(
            f"it counts the GPUs of {tasks} tasks together, and here each has its own; write --gpus-per-task=N"
        )
    kind, number = _value(first, values.gres if first.option == "gres" else values.gpus)
    settings = [first.setting("gpus", number)]
    if kind and number:
        settings.append(first.setting(GPU_TYPE, kind))
    return settings


def _host(given: dict[str, _Given], tasks: int) -> list[Setting]:
    """CPUs and memory of each task."""
    cpus, memory, per_cpu = given.get("cpus-per-task"), given.get("mem"), given.get("mem-per-cpu")
    settings = []
    cpu_count = 0
    if cpus is not None:
        cpu_count = _value(cpus, values.count)
        settings.append(cpus.setting("cpus", cpu_count))
    if memory is not None and per_cpu is not None:
        raise max(memory, per_cpu).refused("--mem and --mem-per-cpu exclude each other; keep one of them")
    if memory is not None:
        if tasks > 1:
            raise memory.refused(
                f"it is the memory of a node for all {tasks} tasks, and here each has its own; write --mem-per-cpu "
                "with --cpus-per-task, or #GPUSHARE --host-memory SIZE for each task"
            )
        settings.append(memory.setting("host-memory", f"{_value(memory, values.memory_mib)}M"))
    if per_cpu is not None:
        if cpus is None:
            raise per_cpu.refused("the number of CPUs is not said; write --cpus-per-task=N, too")
        settings.append(per_cpu.setting("host-memory", f"{_value(per_cpu, values.memory_mib) * cpu_count}M"))
    return settings
