"""Tokens and join secrets: made, recognised, hashed, compared.

Imports the standard library alone. A secret is 256 random bits behind a prefix that scanners of leaked
secrets can find: `gps_` for a token, `gpj_` for a single-use join secret. Invariants: only the SHA-256 of
one is ever stored; comparing takes the same time whatever differs.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

TOKEN_PREFIX = "gps_"
JOIN_SECRET_PREFIX = "gpj_"

_TOKEN = re.compile(r"gps_[A-Za-z0-9_-]{43}")
_JOIN_SECRET = re.compile(r"gpj_[A-Za-z0-9_-]{43}")


def new_token() -> str:
    """A fresh token: shown once, then only its hash is kept."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def new_join_secret() -> str:
    """A fresh single-use secret for an agent's Enroll."""
    return JOIN_SECRET_PREFIX + secrets.token_urlsafe(32)


def is_token(text: str) -> bool:
    """Has the form of a token; anything else need not be hashed or looked up."""
    return _TOKEN.fullmatch(text) is not None


def is_join_secret(text: str) -> bool:
    return _JOIN_SECRET.fullmatch(text) is not None


def token_sha256(secret: str) -> str:
    """What is stored of a token or join secret: 64 hexadecimal digits. 256 random bits need no salt or
    stretching."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


def same_hash(stored_sha256: str, presented_sha256: str) -> bool:
    """Equality in constant time."""
    return hmac.compare_digest(stored_sha256.encode(), presented_sha256.encode())


def bearer_token(authorization: str | bytes | None) -> str | None:
    """The token in an `authorization` header, or None where there is none of the right form."""
    if not isinstance(authorization, str):
        return None
    scheme, _, token = authorization.partition(" ")
    return token if scheme.lower() == "bearer" and is_token(token) else None
