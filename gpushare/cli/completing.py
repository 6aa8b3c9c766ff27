"""What a shell may put in place of a word that is half typed: jobs, nodes, tenants, tokens, contexts, files, choices.

Imports click; the client only where something is to be looked up. By the metavar of a parameter, so that a new command
completes like the others. Invariants: whatever goes wrong, the shell is offered nothing and nothing is printed; a
scheduler that does not answer costs `TIMEOUT_S`; only plain names are offered, since a shell may make more of others.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from gpushare.client.aio import AsyncClient

TIMEOUT_S: Final = 2.0
JOBS_MAX = 200
_PLAIN = re.compile(r"[A-Za-z0-9@][A-Za-z0-9@_.:/-]*")
_SUFFIXES = re.compile(r"(\[/TASK\])?(\.\.\.)?(\|none)?$")
_CHOICE = re.compile(r"[a-z][a-z-]*")
# What these do is of no use to a job that has ended.
_FOR_LIVE_JOBS = frozenset({"attach", "cancel", "exec", "extend", "port-forward", "requeue", "ssh-config"})
# Their argument is a name that nobody has yet.
_MAKES_NEW = frozenset({"create", "join-token"})


class Offer(NamedTuple):
    """A word, and what a shell with room for it says of it."""

    word: str
    about: str = ""


Offers = AsyncIterator[Offer]
Lookup = Callable[["AsyncClient"], Offers]


def teach(command: click.Command) -> click.Command:
    """Has every parameter of `command`, and of the commands below it, complete by what it stands for."""
    for param in command.params:
        completer = _completer(command, param)
        if completer is not None:
            param.shell_complete = completer  # type: ignore[assignment, method-assign]
    if isinstance(command, click.Group):
        for below in command.commands.values():
            teach(below)
    return command


def _completer(
    command: click.Command, param: click.Parameter
) -> Callable[[click.Context, str], list[CompletionItem]] | None:
    is_argument = isinstance(param, click.Argument)
    if param.name == "context":
        return lambda ctx, incomplete: _items(map(Offer, _context_names()), incomplete)
    metavar = _SUFFIXES.sub("", param.metavar or "")
    path = _PATHS.get("FILE" if param.name == "words" else metavar)
    if path is not None:
        return lambda ctx, incomplete: [CompletionItem(incomplete, type=path)]
    lookup = (
        _BY_NAME.get(param.name or "")
        or _BY_METAVAR.get(metavar)
        or (_BY_ARGUMENT.get(metavar) if is_argument else None)
    )
    if lookup is _jobs and command.name in _FOR_LIVE_JOBS:
        lookup = _live_jobs
    if lookup is None and "|" in metavar:
        choices = [Offer(word) for word in metavar.split("|") if _CHOICE.fullmatch(word)]
        return lambda ctx, incomplete: _items(choices, incomplete)
    if lookup is None or (command.name in _MAKES_NEW and is_argument):
        return None
    return lambda ctx, incomplete: _items(_looked_up(ctx, lookup), incomplete)


def _items(offers: Iterable[Offer], incomplete: str) -> list[CompletionItem]:
    seen: dict[str, CompletionItem] = {}
    for offer in offers:
        if offer.word.startswith(incomplete) and _PLAIN.fullmatch(offer.word):
            seen.setdefault(offer.word, CompletionItem(offer.word, help=offer.about or None))
    return list(seen.values())


def _context_names() -> list[str]:
    from gpushare.client.settings import context_path, read_contexts
    from gpushare.errors import GpushareError

    try:
        return list(read_contexts(context_path()).contexts)
    except GpushareError:
        return []


def _looked_up(ctx: click.Context, lookup: Lookup) -> list[Offer]:
    """What the scheduler knows; nothing where it does not say so at once, or within `--timeout`. Nobody is logged in
    for it: a key that is pressed makes no token."""
    from gpushare.cli.session import quiet_grpc

    quiet_grpc()
    try:
        from gpushare.client.aio import AsyncClient
        from gpushare.client.settings import load_settings
        from gpushare.quantity import parse_duration_ms

        flags = ctx.find_root().params
        limit_s = parse_duration_ms(flags["timeout"], "timeout") / 1000 if flags.get("timeout") else TIMEOUT_S
        settings = load_settings(
            server=flags.get("server"),
            token=flags.get("token"),
            ca_file=flags.get("ca"),
            context=flags.get("context"),
            only_kept=True,
        )

        async def ask() -> list[Offer]:
            async with AsyncClient(settings, timeout_s=limit_s) as client:
                return [offer async for offer in lookup(client)]

        return asyncio.run(asyncio.wait_for(ask(), limit_s))
    except Exception:  # a shell's prompt is no place for errors
        return []


# -- what there is


async def _jobs(client: AsyncClient, *, show_ended: bool = True) -> Offers:
    """The newest jobs by id, arrays as a whole, too; the caller's own by their names."""
    from gpushare.cli.output import job_id, job_state

    own = client.settings
    yield Offer("@last", "your newest job")
    seen = 0
    async for job in client.list_jobs(show_ended=show_ended, page_size=JOBS_MAX):
        about = " ".join(filter(None, (job.spec.name, job_state(job), job.created_by.user)))
        word = job_id(job, own.tenant)
        yield Offer(word, about)
        if job.array_id:
            yield Offer(word.partition("_")[0], "array")
        if job.spec.name and job.tenant == own.tenant and job.created_by.user == own.user:
            yield Offer(job.spec.name, about)
        seen += 1
        if seen == JOBS_MAX:
            return


def _live_jobs(client: AsyncClient) -> Offers:
    return _jobs(client, show_ended=False)


async def _nodes(client: AsyncClient) -> Offers:
    from gpushare.cli.output import short_name, word
    from gpushare.client.messages import NodeState

    async for node in client.list_nodes():
        yield Offer(short_name(node.name), word(NodeState, node.state))


async def _models(client: AsyncClient) -> Offers:
    async for node in client.list_nodes():
        for gpu in node.gpus:
            yield Offer(gpu.model)


async def _tenants(client: AsyncClient) -> Offers:
    from gpushare.cli.output import short_name

    async for tenant in client.list_tenants():
        yield Offer(short_name(tenant.name), tenant.display_name)


async def _tokens(client: AsyncClient) -> Offers:
    from gpushare.cli.output import short_name

    async for token in client.list_tokens():
        if not token.HasField("revoke_time"):
            yield Offer(short_name(token.name), f"{token.user} {token.tenant}".strip())


async def _reservations(client: AsyncClient) -> Offers:
    from gpushare.cli.output import short_name

    async for reservation in client.list_reservations():
        yield Offer(short_name(reservation.name), reservation.tenant)


_BY_NAME: Final[dict[str, Lookup]] = {"nodes": _nodes, "model": _models}
_BY_METAVAR: Final[dict[str, Lookup]] = {
    "JOB": _jobs,
    "NODE": _nodes,
    "TENANT": _tenants,
    "T": _tenants,
    "TOKEN": _tokens,
}
_BY_ARGUMENT: Final[dict[str, Lookup]] = {"NAME": _reservations}
_PATHS: Final = {"FILE": "file", "DIR": "dir", "CSV": "file"}
