"""The first start on an empty store: a tenant, an admin's token, and the line an admin pastes into `gpushare login`.

The line stands in `admin.join` in the state directory, readable by its owner alone. The file is written before the
token becomes durable, so that a crash between the two leaves a line that works after the next start. Later starts
only renew the address and certificate in it; deleted, it stays deleted.
"""

from __future__ import annotations

import os
import pwd
import re
from pathlib import Path

from gpushare.core.commands import Bootstrap, Call
from gpushare.core.model import SYSTEM, TenantSettings
from gpushare.errors import GpushareError
from gpushare.join import decode_join, encode_join
from gpushare.names import TextError, check_name
from gpushare.scheduler.engine import Engine
from gpushare.scheduler.tokens import new_token, token_sha256

JOIN_FILE = "admin.join"
_FALLBACK_USER = "admin"


async def bootstrap(
    engine: Engine, state_dir: Path, *, tenant: str, settings: TenantSettings, user: str, address: str, ca_pem: str
) -> Path | None:
    """Make the first tenant and token if the store is empty; returns the join file if there is one."""
    path = state_dir / JOIN_FILE
    secret = _kept_secret(path)
    if engine.state.tokens:
        if secret is None:
            return None
        _write(path, encode_join(address, secret, ca_pem))
        return path
    secret = secret or new_token()
    _write(path, encode_join(address, secret, ca_pem))
    account = pwd.getpwuid(os.geteuid()).pw_name
    command = Bootstrap(
        tenant=tenant,
        user=user or user_name_of(account),
        unix_user="" if account == "root" else account,
        token_id="bootstrap",
        sha256=token_sha256(secret),
        settings=settings,
    )
    await engine.execute(command, Call(SYSTEM))
    return path


def user_name_of(account: str) -> str:
    """A Unix account's name as a user's name: what the grammar does not take becomes a dash."""
    name = re.sub(r"[^a-z0-9]+", "-", account.lower()).strip("-")[:63]
    try:
        return check_name(name)
    except TextError:
        return _FALLBACK_USER


def _kept_secret(path: Path) -> str | None:
    try:
        return decode_join(path.read_text()).secret
    except (OSError, GpushareError, UnicodeDecodeError):
        return None


def _write(path: Path, line: str) -> None:
    temporary = path.with_suffix(".tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
