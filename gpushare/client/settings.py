"""Where the scheduler is and who calls: flags, then environment, then the context file with its named contexts, then
the word of this host's agent.

Imports the standard library, `gpushare.address`, `errors` and `join`. Invariants: the file holds tokens, so it is
written with mode 0600, whole or not at all; an unknown key in it is an error; no error shows a token.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from gpushare.address import parse_address
from gpushare.errors import FailedPreconditionError, GpushareError, error_of
from gpushare.join import JoinString
from gpushare.names import TextError
from gpushare.reasons import Reason

SERVER_ENV = "GPUSHARE_SERVER"
TOKEN_ENV = "GPUSHARE_TOKEN"
CA_ENV = "GPUSHARE_CA"
CONFIG_ENV = "GPUSHARE_CONFIG"
TENANT_ENV = "GPUSHARE_TENANT"

_CONTEXT_NAME = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_.]{0,62}")


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """What it takes to call one scheduler. `ca_pem` "" is for a scheduler without TLS on this machine.

    `tenant` and `user` are the caller's own where they are known, else "": they only complete what a person leaves out,
    the scheduler goes by the token. `socket` is that of the agent on whose word the token was given, "" for a token
    that came otherwise; `renew` then gets another one, and may take seconds.
    """

    server: str
    token: str = field(repr=False)
    ca_pem: str = field(default="", repr=False)
    tenant: str = ""
    user: str = ""
    socket: str = ""
    renew: Callable[[], ConnectionSettings] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class ContextFile:
    """The named connections of one person, and which one counts."""

    current: str = ""
    contexts: Mapping[str, ConnectionSettings] = field(default_factory=dict)


def context_path(environ: Mapping[str, str] = os.environ) -> Path:
    """GPUSHARE_CONFIG, else gpushare/config.toml in the XDG configuration directory."""
    if environ.get(CONFIG_ENV):
        return Path(environ[CONFIG_ENV])
    base = environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "gpushare" / "config.toml"


def load_settings(
    *,
    server: str | None = None,
    token: str | None = None,
    ca_file: str | None = None,
    context: str | None = None,
    tenant: str = "",
    environ: Mapping[str, str] = os.environ,
    only_kept: bool = False,
) -> ConnectionSettings:
    """The connection to use; each of the arguments beats the environment, which beats the context file. Where none of
    them names a scheduler, this host's agent is asked; `tenant` is for whom, where a person belongs to several. With
    `only_kept` the agent is not asked: a login that it gave before is used as long as it counts.

    Raises FailedPreconditionError(CONFIG_INVALID) that names the file and key, or says how to log in; and what the
    agent refuses with.
    """
    path = context_path(environ)
    named = environ.get(TENANT_ENV, "")
    has_both = bool((server or environ.get(SERVER_ENV)) and (token or environ.get(TOKEN_ENV)))
    chosen = _chosen(read_contexts(path), context, path)
    if not has_both and (chosen is None or chosen.socket):
        asked = tenant or named
        chosen = _of_host(chosen, server or environ.get(SERVER_ENV, ""), asked, environ, only_kept)
    server = server or environ.get(SERVER_ENV) or (chosen.server if chosen else "")
    token = token or environ.get(TOKEN_ENV) or (chosen.token if chosen else "")
    if not server:
        kept = ", ".join(read_contexts(path).contexts)
        raise _refused(
            "No scheduler is known.",
            (f"Choose one of the contexts of {path} ({kept}) with --context, or run" if kept else "Run")
            + " `gpushare login JOIN` with a line from the admin, or `gpushare up` for a scheduler of your own; on a "
            "host of a cluster its agent can log you in, once an admin trusts that host.",
        )
    if not token:
        raise _refused(
            f"There is no token for {server}.",
            f"Run `gpushare login JOIN` with a line from the admin, or set {TOKEN_ENV}.",
        )
    _check_address(server, f"the scheduler's address {server!r}")
    base = chosen if chosen is not None and chosen.server == server else None
    ca_file = ca_file or environ.get(CA_ENV)
    ca_pem = _read_ca(ca_file) if ca_file else (base.ca_pem if base else "")
    # With a token of their own these callers are somebody else, whose names the context does not know.
    same_caller = base is not None and base.token == token
    return ConnectionSettings(
        server=server,
        token=token,
        ca_pem=ca_pem,
        # For whom one command is does not change whose `42` is meant by the next.
        tenant=named or (base.tenant if base is not None and same_caller else "") or tenant,
        user=base.user if base is not None and same_caller else "",
        socket=base.socket if base is not None and same_caller else "",
        renew=base.renew if base is not None and same_caller else None,
    )


def _of_host(
    chosen: ConnectionSettings | None, server: str, tenant: str, environ: Mapping[str, str], only_kept: bool
) -> ConnectionSettings | None:
    """The connection that this host's agent gives: to a person without any context, or whose context says so. A token
    for one scheduler is nothing for another that was named."""
    from gpushare.client import hostlogin

    socket = chosen.socket if chosen is not None else hostlogin.find_socket(environ)
    if not socket or (server and (chosen is None or chosen.server != server)):
        return None
    find = hostlogin.peek if only_kept else hostlogin.log_in
    return find(socket, tenant or (chosen.tenant if chosen is not None else ""), environ=environ)


def settings_of_join(join: JoinString, *, tenant: str = "", user: str = "") -> ConnectionSettings:
    """The connection that a join string for people describes."""
    return ConnectionSettings(join.address, join.secret, join.ca_pem, tenant, user)


def read_contexts(path: Path) -> ContextFile:
    """The context file, or an empty one where there is none. Raises FailedPreconditionError(CONFIG_INVALID)."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ContextFile()
    except (OSError, UnicodeDecodeError) as err:
        raise _refused(f"{path} cannot be read: {err}.", "Mend the file or its mode.") from err
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise _refused(f"{path} is no TOML: {err}.", "Correct that line.") from err
    tables = document.pop("contexts", {})
    current = document.pop("current", "")
    if document:
        raise _refused(f"{path} has the unknown key {next(iter(document))!r}.", "Take it out.")
    if not isinstance(tables, dict) or not isinstance(current, str):
        raise _refused(f"{path}: `current` is a name and `contexts` a table.", "Correct them, or log in again.")
    return ContextFile(current, {name: _context_of(name, table, path) for name, table in tables.items()})


def _context_of(name: str, table: object, path: Path) -> ConnectionSettings:
    where = f"{path}, context {name!r}"
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise _refused(f"{where}: every value is a text.", "Correct it, or log in again.")
    unknown = set(table) - {"server", "token", "ca", "tenant", "user", "socket"}
    if unknown:
        raise _refused(f"{where} has the unknown key {min(unknown)!r}.", "Take it out.")
    if "server" not in table or ("token" not in table and "socket" not in table):
        raise _refused(f"{where} needs `server`, and `token` or `socket`.", "Log in again.")
    _check_address(table["server"], f"{where}: `server`")
    return ConnectionSettings(
        server=table["server"],
        token=table.get("token", ""),
        ca_pem=table.get("ca", ""),
        tenant=table.get("tenant", ""),
        user=table.get("user", ""),
        socket=table.get("socket", ""),
    )


def save_context(path: Path, name: str, settings: ConnectionSettings) -> None:
    """Adds or replaces one context and makes it the current one; the others stay as they are. Of a login by this host's
    agent the token is not written here: it is renewed elsewhere."""
    if _CONTEXT_NAME.fullmatch(name) is None:
        raise _refused(f"{name!r} is no name for a context.", "Use up to 63 letters, digits, '-', '_' and '.'.")
    known = read_contexts(path)
    _write(path, replace(known, current=name, contexts={**known.contexts, name: settings}))


def choose_context(path: Path, name: str) -> ConnectionSettings:
    """Makes a context the current one and returns its settings. Raises NotFoundError where there is none."""
    known = read_contexts(path)
    if name not in known.contexts:
        raise error_of(
            Reason.NOT_FOUND,
            f"There is no context {name!r} in {path}.",
            what_to_do="`gpushare contexts` lists them; `gpushare login` makes one.",
        )
    _write(path, replace(known, current=name))
    return known.contexts[name]


def leave_context(path: Path, name: str, settings: ConnectionSettings, before: str) -> bool:
    """Makes the context `before` the current one, or none where there is none of that name; True when done. Only where
    `name` is current, and still what `settings` say: somebody may have chosen otherwise."""
    known = read_contexts(path)
    if known.current != name or known.contexts.get(name) != settings:
        return False
    _write(path, replace(known, current=before if before in known.contexts else ""))
    return True


def forget_context(path: Path, name: str) -> None:
    """Takes one context out; if it was the current one, none is."""
    known = read_contexts(path)
    left = {each: settings for each, settings in known.contexts.items() if each != name}
    _write(path, ContextFile("" if known.current == name else known.current, left))


def _write(path: Path, file: ContextFile) -> None:
    lines = [f"current = {_toml_text(file.current)}"]
    for name, settings in file.contexts.items():
        lines += ["", f"[contexts.{_toml_text(name)}]"]
        values = {
            "server": settings.server,
            "token": "" if settings.socket else settings.token,
            "socket": settings.socket,
            "ca": settings.ca_pem,
            "tenant": settings.tenant,
            "user": settings.user,
        }
        lines += [f"{key} = {_toml_text(value)}" for key, value in values.items() if value]
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # mkstemp makes it 0600; a rename never shows half a file to another command.
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as out:
                out.write("\n".join(lines) + "\n")
            os.replace(temporary, path)
        except BaseException:
            # It holds tokens.
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as err:
        raise _refused(
            f"{path} cannot be written: {err}.", "Mend the directory's mode, or set GPUSHARE_CONFIG."
        ) from err


def _toml_text(value: str) -> str:
    """A TOML basic string; JSON's escapes are a part of TOML's, DEL apart."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _chosen(contexts: ContextFile, name: str | None, path: Path) -> ConnectionSettings | None:
    wanted = name or contexts.current
    if not wanted:
        return None
    if wanted not in contexts.contexts:
        known = ", ".join(contexts.contexts) or "none"
        raise _refused(f"{path} has no context {wanted!r} (it has: {known}).", "Name another, or log in.")
    return contexts.contexts[wanted]


def _check_address(text: str, what: str) -> None:
    try:
        parse_address(text)
    except TextError as err:
        raise _refused(f"{what} {err.why}.", f"Write {err.accepted}.") from err


def _read_ca(ca_file: str) -> str:
    try:
        pem = Path(ca_file).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as err:
        raise _refused(f"The CA certificate {ca_file!r} cannot be read: {err}.", "Name a PEM file.") from err
    if "-----BEGIN CERTIFICATE-----" not in pem:
        raise _refused(f"{ca_file!r} holds no PEM certificate.", "Name a PEM file.")
    return pem


def _refused(message: str, what_to_do: str) -> GpushareError:
    return FailedPreconditionError(Reason.CONFIG_INVALID, message, what_to_do=what_to_do)
