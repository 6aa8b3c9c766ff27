"""The directives of a script as options of `gpushare submit`: read, merged with those of the command line, told of.

Imports click and the client's readers of directives. Invariants: what is typed wins over `#GPUSHARE`, and that over
`#SBATCH`; options that may be repeated add up, and of several K=V for one K the winner's holds; whatever is wrong with
a directive names its line.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from gpushare.cli.fieldnames import option_of, without_field
from gpushare.cli.usageerrors import SeveralUsageErrors
from gpushare.client.directives import (
    GPUSHARE,
    SBATCH,
    Directive,
    DirectiveError,
    Setting,
    directives_of,
    lookalikes_of,
)
from gpushare.client.sbatch import GPU_TYPE, settings_of

if TYPE_CHECKING:
    from gpushare.client.aio import AsyncClient
    from gpushare.errors import GpushareError
    from gpushare.names import TextError

# Parameters about this one call, which no script may give.
_OF_THE_CALL = frozenset({"dry_run", "parsable", "no_directives", "words"})
_PAIRS = frozenset({"env", "label", "node-label"})
_SHOWN_VALUE_CHARS = 60

_NOTHING = Setting(0, "", "", "")

_SLURMS_OWN = re.compile(rb"\b(?:SLURM_[A-Z_]+|srun)\b")
_IN_ITS_PLACE = {
    "SLURM_ARRAY_TASK_ID": "write GPUSHARE_ARRAY_INDEX",
    "SLURM_JOBID": "write GPUSHARE_JOB_ID",
    "SLURM_JOB_ID": "write GPUSHARE_JOB_ID",
    "SLURM_LOCALID": "write LOCAL_RANK",
    "SLURM_NODEID": "write NODE_RANK",
    "SLURM_NTASKS": "write WORLD_SIZE",
    "SLURM_PROCID": "write RANK",
    "srun": "leave it out, each task runs the script itself",
}


class Directives(NamedTuple):
    """What a script says that holds: `settings` of `lines` of the file `script`; `slurms_own` are words in it that only
    Slurm gives a meaning, `lookalikes` lines that were perhaps meant as directives; `has_cr`: its lines end as on
    Windows."""

    script: str
    lines: int = 0
    settings: tuple[Setting, ...] = ()
    slurms_own: tuple[str, ...] = ()
    lookalikes: tuple[str, ...] = ()
    has_cr: bool = False

    def notes(self) -> Iterator[str]:
        """What a person should know about it, a line each."""
        if self.lines:
            count = "1 directive" if self.lines == 1 else f"{self.lines} directives"
            said = " ".join(_shown(setting) for setting in self.settings)
            yield f"{count} of {self.script}: {said or 'all overridden by the command line'}"
        if self.lookalikes:
            more = f" (and {len(self.lookalikes) - 1} more)" if len(self.lookalikes) > 1 else ""
            yield f"{self.lookalikes[0]}{more}"
        if self.has_cr:
            yield (
                f"the lines of {self.script} end with a carriage return, as on Windows; a node takes the first line's "
                "as a part of the interpreter's name: take them out (dos2unix, or sed -i 's/\\r$//')"
            )
        if self.slurms_own:
            words = (f"{w} ({_IN_ITS_PLACE[w]})" if w in _IN_ITS_PLACE else w for w in self.slurms_own)
            yield f"{self.script} uses what only Slurm has: {', '.join(words)}"

    def located(self, err: TextError) -> Exception:
        """`err` with the line that it came from, where it came from one."""
        option = _option(err.field)
        for setting in self.settings:
            if setting.option == option and (option not in _PAIRS or err.value in setting.value):
                return _at_line(
                    self.script, setting.line, f"{setting.source}: {str(err).removeprefix(err.field).strip()}"
                )
        return err

    def located_refusal(self, err: GpushareError) -> GpushareError:
        """The same for what the scheduler refuses. Of what may be given several times only it knows which was meant."""
        for field, _ in err.violations:
            for setting in self.settings:
                if setting.option == _option(field) and setting.option not in _PAIRS:
                    told = f"script {self.script}, line {setting.line}: {setting.source}: "
                    return type(err)(
                        err.reason,
                        told + without_field(err.message, field),
                        what_to_do=err.what_to_do,
                        metadata=err.metadata,
                    )
        return err

    async def with_models(self, client: AsyncClient) -> tuple[Directives, str]:
        """A type of cards, as Slurm scripts have it, as the models of this cluster that it means: "A,B", or "" where
        none was named. Raises click.UsageError where there is no such card."""
        asked = next((setting for setting in self.settings if setting.option == GPU_TYPE), None)
        if asked is None:
            return self, ""
        known = sorted({gpu.model async for node in client.list_nodes() for gpu in node.gpus})
        models = ",".join(model for model in known if _model_words(asked.value) <= _model_words(model))
        if not models:
            there = f"there are {', '.join(known)}" if known else "there are no cards at all"
            raise _at_line(self.script, asked.line, f"{asked.source}: no card here is called {asked.value!a}; {there}")
        resolved = asked._replace(option="model", value=models)
        return self._replace(settings=tuple(resolved if s is asked else s for s in self.settings)), models


def merge(
    typed: Mapping[str, Any], script: bytes, name: str, parameters: Sequence[click.Parameter]
) -> tuple[dict[str, Any], Directives]:
    """The options of the command with those of the script beside them. `parameters` are those of `gpushare submit`.
    Raises click.UsageError that names the line."""
    shown = "standard input" if name == "-" else name
    wrong: list[DirectiveError] = []
    found = directives_of(script, wrong)
    slurm = [directive for directive in found if directive.kind == SBATCH]
    own = [directive for directive in found if directive.kind == GPUSHARE]
    settings = [*settings_of(slurm, wrong), *_own_settings(own, parameters, wrong)]
    if wrong:
        wrong.sort(key=lambda each: each.line)
        raise SeveralUsageErrors(
            [_at_line(shown, each.line, each.text) for each in wrong], ctx=click.get_current_context(silent=True)
        )
    held = _held(typed, settings, slurm)
    merged = dict(typed)
    for setting in held:
        parameter = setting.option.replace("-", "_")
        if isinstance(typed.get(parameter), tuple):
            merged[parameter] = (*merged[parameter], setting.value)
        else:
            merged[parameter] = setting.value
    words = {match[0].decode() for match in _SLURMS_OWN.finditer(script)} if slurm else set()
    lookalikes = tuple(f"line {each.line} of {shown} {each.text}" for each in lookalikes_of(script))
    has_cr = script.partition(b"\n")[0].endswith(b"\r")
    return merged, Directives(shown, len(found), tuple(held), tuple(sorted(words)), lookalikes, has_cr)


def _own_settings(
    directives: Sequence[Directive], parameters: Sequence[click.Parameter], wrong: list[DirectiveError]
) -> list[Setting]:
    """Of the `#GPUSHARE` lines; what cannot be followed goes to `wrong`."""
    settings: list[Setting] = []
    for directive in directives:
        try:
            settings += _of_line(directive, parameters)
        except DirectiveError as err:
            wrong.append(err)
    return settings


def _of_line(directive: Directive, parameters: Sequence[click.Parameter]) -> Iterator[Setting]:
    """A `#GPUSHARE` line, read by what reads the command line."""
    of_jobs = [parameter for parameter in parameters if parameter.name not in _OF_THE_CALL]
    command = click.Command("directives", params=of_jobs, add_help_option=False)
    context = click.Context(command, allow_interspersed_args=False)
    try:
        given, rest, _ = command.make_parser(context).parse_args(list(directive.words))
    except click.UsageError as err:
        raise DirectiveError(directive.line, f"{GPUSHARE}: {err.format_message().rstrip('.')}") from err
    if rest:
        raise DirectiveError(directive.line, f"{GPUSHARE}: {rest[0]!a} belongs to no option")
    for parameter, value in given.items():
        option = parameter.replace("_", "-")
        for each in value if isinstance(value, list) else [value]:
            yield Setting(directive.line, f"{GPUSHARE} --{option}", option, each)


def _held(typed: Mapping[str, Any], settings: Sequence[Setting], slurm: Sequence[Directive]) -> list[Setting]:
    """Those that nothing overrides: not the command line, and not a later one."""
    held: dict[tuple[str, str], Setting] = {}
    for setting in settings:
        is_typed = typed.get(setting.option.replace("-", "_"))
        key = setting.value.partition("=")[0] if setting.option in _PAIRS else ""
        if isinstance(is_typed, tuple):
            if not key or key not in {pair.partition("=")[0] for pair in is_typed}:
                held[setting.option, key or setting.value] = setting
        elif not is_typed:
            held[setting.option, ""] = setting
    by_memory = typed["gpu_memory"] or ("gpu-memory", "") in held
    if by_memory and held.get(("gpus", ""), _NOTHING).source.startswith(SBATCH):
        # Whole cards exclude a share by its memory, and that is the winner's word.
        del held["gpus", ""]
    gpus = typed["gpus"] or held.get(("gpus", ""), _NOTHING).value
    if gpus == "0" or typed["model"] or ("model", "") in held:
        held.pop((GPU_TYPE, ""), None)
    if slurm and not (gpus or by_memory):
        # There, who names no GPU gets none; here it would be the tenant's default request.
        held["gpus", ""] = Setting(slurm[0].line, SBATCH, "gpus", "0")
    return list(held.values())


def _shown(setting: Setting) -> str:
    value = setting.value
    if len(value) > _SHOWN_VALUE_CHARS:
        value = f"{value[:_SHOWN_VALUE_CHARS]}..."
    return f"--{setting.option} {shlex.quote(value)}"


def _option(field: str) -> str:
    """ "gpu-memory" of "resources.gpu_memory_mib", "gpu_memory" or --gpu-memory."""
    return option_of(field.partition("[")[0]).removeprefix("--").replace("_", "-")


def _model_words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]+", text.lower()))


def _at_line(script: str, line: int, text: str) -> click.UsageError:
    return click.UsageError(f"script {script}, line {line}: {text}")
