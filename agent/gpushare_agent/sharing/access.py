"""Who may reach a card's MPS socket: the pipe directory's modes and access list, and whether somebody
listens.

Imports the standard library alone. CUDA starts without MPS and without any limit, silently, when it cannot
reach the socket; so before each launch every step of the path is checked for the job's own user, and the
socket is tried. Only the users with a job on the card get through the directory; where the file system has
no access lists, everybody does.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from collections.abc import Collection
from pathlib import Path

ACL = "system.posix_acl_access"
ACL_VERSION = 2
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
NO_ID = 0xFFFFFFFF
READ, WRITE, PASS = 4, 2, 1


def admit(directory: Path, uids: Collection[int]) -> bool:
    """Let these users (and the owner) pass through the directory, and nobody else.

    False if the file system has no access lists: then everybody may pass (mode 0711). OSError if it cannot
    be set.
    """
    others = sorted(set(uids) - {0, os.geteuid()})
    if not others:
        _drop_acl(directory)
        directory.chmod(0o700)
        return True
    entries = [(USER_OBJ, 7, NO_ID), *((USER, PASS, uid) for uid in others)]
    entries += [(GROUP_OBJ, 0, NO_ID), (MASK, PASS, NO_ID), (OTHER, 0, NO_ID)]
    packed = struct.pack("<I", ACL_VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(directory, ACL, packed)
    except OSError as err:
        if err.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EINVAL):
            raise
        directory.chmod(0o711)
        return False
    return True


def fingerprint(directory: Path) -> str:
    """Owner, mode and access list as one text: what `admit` left, unless somebody changed it since."""
    status = directory.stat()
    return f"{status.st_uid} {stat.S_IMODE(status.st_mode):04o} {_read_acl(directory).hex()}"


def why_unreachable(target: Path, uid: int, gids: Collection[int]) -> str:
    """Why this user could not connect to the socket at `target` by its modes; "" if the modes let it."""
    target = target.parent.resolve() / target.name
    for parent in reversed(target.parents):
        cause = _why_refused(parent, uid, gids, PASS, "pass through")
        if cause:
            return cause
    return _why_refused(target, uid, gids, WRITE, "connect to")


def why_deaf(target: Path) -> str:
    """Why nobody answers at a Unix socket; "" if a connection is accepted. Never waits."""
    for kind in (socket.SOCK_SEQPACKET, socket.SOCK_STREAM):
        with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as probe:
            try:
                probe.connect(str(target))
                return ""
            except OSError as err:
                if err.errno == errno.EPROTOTYPE:
                    continue  # a socket of the other kind
                return f"nobody accepts connections at {target}: {err.strerror}"
    return f"{target} is not a socket of a known kind"


def _why_refused(path: Path, uid: int, gids: Collection[int], wanted: int, verb: str) -> str:
    try:
        status = path.stat()
    except OSError as err:
        return f"{path} cannot be looked at: {err.strerror}"
    if uid == 0 or _permissions(path, status, uid, gids) & wanted:
        return ""
    mode = stat.S_IMODE(status.st_mode)
    return f"{path} (mode {mode:04o}, owner {status.st_uid}) does not let user {uid} {verb} it"


def _permissions(path: Path, status: os.stat_result, uid: int, gids: Collection[int]) -> int:
    """The kernel's own rule: owner, named user, groups, others; named users and groups cut by the mask."""
    mode = status.st_mode
    if uid == status.st_uid:
        return mode >> 6 & 7
    entries = _entries(_read_acl(path))
    mask = next((allowed for tag, allowed, _ in entries if tag == MASK), 7)
    for tag, allowed, who in entries:
        if tag == USER and who == uid:
            return allowed & mask
    if not entries:
        return mode >> 3 & 7 if status.st_gid in gids else mode & 7
    in_groups = [
        allowed & mask
        for tag, allowed, who in entries
        if (tag == GROUP_OBJ and status.st_gid in gids) or (tag == GROUP and who in gids)
    ]
    return max(in_groups, default=mode & 7)


def _entries(packed: bytes) -> list[tuple[int, int, int]]:
    """(tag, permissions, id) of an access list."""
    return [struct.unpack_from("<HHI", packed, at) for at in range(4, len(packed) - 7, 8)]


def _read_acl(path: Path) -> bytes:
    try:
        return os.getxattr(path, ACL)
    except OSError:
        return b""  # none, or a file system without access lists


def _drop_acl(path: Path) -> None:
    try:
        os.removexattr(path, ACL)
    except OSError as err:
        if err.errno not in (errno.ENODATA, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise
