"""Pages: size, and the opaque token that leads to the next one.

Imports the errors and the core's nouns. A token holds a place in one listing and a digest over that place, the RPC, its
filter and the caller, so that another caller's, another listing's or an altered one is refused. It grants nothing: what
a caller may see is judged again on every page. It holds across restarts of the scheduler.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json

from gpushare.core.model import Principal
from gpushare.errors import error_of, invalid_field
from gpushare.reasons import Reason

PAGE_SIZE_DEFAULT = 100
#: A page ends early once its items pass this, so that it stays far below what a client accepts.
PAGE_BYTES_MAX = 2 << 20
_TOKEN_MAX_CHARS = 1024
_DIGEST_BYTES = 16

#: Where the next page begins: integers and texts.
Cursor = list[int | str]


def page_size(asked: int, most: int) -> int:
    """The number of items of a page: 0 is the default, more than `most` is `most`. Raises INVALID_FIELD below 0."""
    if asked < 0:
        raise invalid_field("page_size", f"is {asked}; accepted: 0 (default {PAGE_SIZE_DEFAULT}) to {most}")
    return min(asked or PAGE_SIZE_DEFAULT, most)


class Place:
    """The tokens of one listing: one RPC with one filter for one caller. `invalid` is the reason of a refusal."""

    def __init__(
        self,
        rpc: str,
        who: Principal,
        filters: list[int | str | bool],
        invalid: Reason = Reason.PAGE_TOKEN_INVALID,
    ) -> None:
        self._invalid = invalid
        self._bound = json.dumps([rpc, who.user, who.role.value, who.tenant, filters]).encode()

    def token(self, cursor: Cursor) -> str:
        body = json.dumps(cursor, separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(self._digest(body) + body).decode().rstrip("=")

    def cursor(self, token: str, kinds: tuple[type[int] | type[str], ...]) -> Cursor:
        """The place that `token` names; `kinds` are the types of its parts. Raises `invalid`."""
        if len(token) > _TOKEN_MAX_CHARS or not token.isascii():
            raise error_of(self._invalid)
        try:
            data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError) as err:
            raise error_of(self._invalid) from err
        digest, body = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        if digest != self._digest(body):
            raise error_of(self._invalid)
        try:
            cursor = json.loads(body)
        except (ValueError, RecursionError) as err:
            raise error_of(self._invalid) from err
        if not isinstance(cursor, list) or tuple(type(part) for part in cursor) != kinds:
            raise error_of(self._invalid)
        return cursor

    def _digest(self, body: bytes) -> bytes:
        return hashlib.sha256(b"gpushare page 1\0" + self._bound + b"\0" + body).digest()[:_DIGEST_BYTES]
