"""What a text may be: names, display names, environment names and free text.

Pure: the standard library's data modules alone. One place for the CLI, the client, the configuration and
the core, so that a text that one of them accepts is never refused by another. Every check returns its
argument unchanged (nothing is folded, trimmed or normalised) or raises `TextError`; matching is by
`fullmatch`, because `$` lets a trailing newline pass.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata

NAME_MAX_CHARS = 63
DISPLAY_NAME_MAX_CHARS = 256
SHARED_PATHS_MAX = 64
# Of a terminal, in characters each way.
WINDOW_MAX = 9999

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_ACCOUNT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

# Joiners hold emoji sequences and some scripts together; every other invisible format character can only
# mislead.
_JOINERS = "\u200c\u200d"
_RESERVED_ENV = frozenset({"CUDA_VISIBLE_DEVICES"})
_RESERVED_ENV_PREFIXES = ("CUDA_MPS_", "GPUSHARE_")

NAME_RULE = "1 to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit"
ACCOUNT_RULE = "1 to 64 of A-Z, a-z, 0-9, _, ., @ and -, beginning with a letter, a digit or _"


class TextError(ValueError):
    """A text that was refused. `field` names what was asked for, `why` is half a sentence, `accepted` says
    what passes."""

    def __init__(self, field: str, value: str, why: str, accepted: str) -> None:
        self.field = field
        self.value = value
        self.why = why
        self.accepted = accepted
        super().__init__(f"{field} {shown(value)}: {why}; accepted: {accepted}")


def shown(value: str, max_chars: int = 40) -> str:
    """`value` quoted for a message: ASCII alone, no control characters, clipped, whatever it holds."""
    clipped = value if len(value) <= max_chars else value[:max_chars] + "..."
    return ascii(clipped)


def check_name(value: str, field: str = "name") -> str:
    """A tenant, user, node or job name: `NAME_RULE`."""
    if value == "":
        raise TextError(field, value, "is empty", NAME_RULE)
    if len(value) > NAME_MAX_CHARS:
        raise TextError(field, value, f"has {len(value)} characters", NAME_RULE)
    if _NAME.fullmatch(value) is None:
        raise TextError(field, value, _why_not_name(value), NAME_RULE)
    return value


def check_job_name(value: str, field: str = "name") -> str:
    """A name that is no id, so that both can stand for a job: a `NAME_RULE` with more than digits."""
    if value.isdecimal():
        raise TextError(field, value, "is digits alone, as the ids of jobs are", f"{NAME_RULE}, with a letter")
    return check_name(value, field)


def check_account(value: str, field: str = "unix_user") -> str:
    """A Unix account's name: `ACCOUNT_RULE`. Directories know more of them than a local passwd file would take."""
    if _ACCOUNT.fullmatch(value) is None:
        raise TextError(field, value, "is empty" if value == "" else "is no account's name", ACCOUNT_RULE)
    return value


def _why_not_name(value: str) -> str:
    if not value.isascii():
        return "has a character outside ASCII"
    for char in value:
        if not (char.islower() or char.isdigit() or char == "-"):
            return f"has {char!r}"
    return "begins or ends with -"


def check_display_name(value: str, field: str = "display_name", max_chars: int = DISPLAY_NAME_MAX_CHARS) -> str:
    """A text only for people's eyes: any script and emoji, but nothing invisible or able to reorder the
    line."""
    accepted = f"1 to {max_chars} characters on one line, without invisible or direction characters"
    if value == "":
        raise TextError(field, value, "is empty", accepted)
    if len(value) > max_chars:
        raise TextError(field, value, f"has {len(value)} characters", accepted)
    for position, char in enumerate(value):
        category = unicodedata.category(char)
        if category == "Cs":
            raise TextError(field, value, "is not valid UTF-8", accepted)
        joins = char in _JOINERS and 0 < position < len(value) - 1
        if category in ("Cc", "Zl", "Zp") or (category == "Cf" and not joins):
            raise TextError(field, value, f"has U+{ord(char):04X} at character {position + 1}", accepted)
    if value != value.strip():
        raise TextError(field, value, "begins or ends with a space", accepted)
    return value


def check_text(value: str, field: str = "text", *, max_bytes: int, controls: bool = False) -> str:
    """Free text that must survive UTF-8, C strings and databases.

    Never a lone surrogate (bytes that were not UTF-8) and never NUL; other control characters only with
    `controls`, which is for arguments and scripts. `max_bytes` counts UTF-8 bytes.
    """
    accepted = f"UTF-8 text up to {max_bytes} bytes without NUL"
    if not controls:
        accepted += " or control characters"
    try:
        size_bytes = len(value.encode())
    except UnicodeEncodeError as err:
        raise TextError(field, value, "is not valid UTF-8", accepted) from err
    if size_bytes > max_bytes:
        raise TextError(field, value, f"has {size_bytes} bytes", accepted)
    if "\0" in value:
        raise TextError(field, value, "has a NUL character", accepted)
    if not controls:
        for position, char in enumerate(value):
            if unicodedata.category(char) == "Cc":
                raise TextError(field, value, f"has U+{ord(char):04X} at character {position + 1}", accepted)
    return value


def check_shared_path(value: str, field: str = "shared_paths") -> str:
    """A directory as an agent publishes it: absolute, and written in one way only."""
    accepted = "an absolute path without //, . and .., and without a / at its end"
    check_text(value, field, max_bytes=4096)
    if not value.startswith("/") or posixpath.normpath(value) != value or value.startswith("//"):
        raise TextError(field, value, "is not written so", accepted)
    return value


def check_env_name(value: str, field: str = "env") -> str:
    """The name of an environment variable, as a shell can set it."""
    accepted = "letters, digits and _, not beginning with a digit"
    if _ENV_NAME.fullmatch(value) is None:
        raise TextError(field, value, "is empty" if value == "" else "is not a variable's name", accepted)
    return value


def is_reserved_env(name: str) -> bool:
    """True for the variables by which a job is fenced and told who it is: only gpushare itself sets them."""
    return name in _RESERVED_ENV or name.startswith(_RESERVED_ENV_PREFIXES)
