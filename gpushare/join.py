"""The join string: everything a new client or agent needs to trust and reach a scheduler, as one pasted line.

Imports the standard library, `address` and `errors`. `gps-join-v1.` and the base64url of a JSON object:
`address`, `secret` (a token for `gpushare login`, a single-use secret for an agent) and `ca` (PEM; empty
only for a scheduler without TLS, which must be on this very machine). Invariant: no error ever shows a part
of the string, because it holds a secret.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import NamedTuple

from gpushare.address import is_loopback, parse_address
from gpushare.errors import GpushareError, invalid_field
from gpushare.names import TextError

PREFIX = "gps-join-v1."
MAX_CHARS = 16_384

_SECRET = re.compile(r"(gps|gpj)_[A-Za-z0-9_-]{43}")
_PEM_BEGIN = "-----BEGIN CERTIFICATE-----\n"


class JoinString(NamedTuple):
    """`address` is "host:port"; `ca_pem` is the CA's certificate, "" where the scheduler has no TLS."""

    address: str
    secret: str
    ca_pem: str

    @property
    def is_for_agent(self) -> bool:
        return self.secret.startswith("gpj_")

    def __repr__(self) -> str:
        return f"JoinString(address={self.address!r})"


def encode_join(address: str, secret: str, ca_pem: str) -> str:
    """One line of ASCII without spaces, safe to paste into a shell."""
    body = json.dumps({"address": address, "secret": secret, "ca": ca_pem}, separators=(",", ":"))
    return PREFIX + base64.urlsafe_b64encode(body.encode()).decode().rstrip("=")


def decode_join(text: str) -> JoinString:
    """The parts of a join string; an InvalidArgumentError says what is wrong with it without showing it."""
    text = text.strip()
    if not text.startswith("gps-join-"):
        raise _refused(f"is no join string; one begins with {PREFIX}")
    if not text.startswith(PREFIX):
        raise _refused(f"is of another version; this program reads {PREFIX}")
    if len(text) > MAX_CHARS:
        raise _refused("is too long")
    body = text.removeprefix(PREFIX)
    try:
        decoded = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        fields = json.loads(decoded)
    except (binascii.Error, ValueError, RecursionError) as err:
        raise _refused("is damaged; copy the whole line") from err
    if not isinstance(fields, dict) or sorted(fields) != ["address", "ca", "secret"]:
        raise _refused("does not hold an address, a secret and a CA certificate")
    address, secret, ca_pem = fields["address"], fields["secret"], fields["ca"]
    if not (isinstance(address, str) and isinstance(secret, str) and isinstance(ca_pem, str)):
        raise _refused("does not hold three texts")
    if _SECRET.fullmatch(secret) is None:
        raise _refused("holds no valid secret")
    try:
        host = parse_address(address).host
    except TextError as err:
        raise _refused("holds no valid address") from err
    if ca_pem == "" and not is_loopback(host):
        raise _refused("has no CA certificate for an address beyond this machine")
    if ca_pem and not (ca_pem.startswith(_PEM_BEGIN) and ca_pem.isascii()):
        raise _refused("holds no valid CA certificate")
    return JoinString(address, secret, ca_pem)


def decode_agent_join(text: str, field: str = "join") -> JoinString:
    """The same for an agent, which a person's line is of no use to."""
    join = decode_join(text)
    if not join.is_for_agent:
        raise invalid_field(
            field, "this line is for `gpushare login`; an agent's comes from `gpushare node join-token NODE`"
        )
    return join


def _refused(why: str) -> GpushareError:
    return invalid_field("join", f"the join string {why}")
