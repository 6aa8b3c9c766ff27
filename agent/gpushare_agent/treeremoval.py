"""Removes a directory that a job could write to, without ever following what is in it.

Imports the standard library alone. Invariants: nothing but directories is opened, each by its name in one that is open
already, and never through a link; a directory is taken over (owner and mode) before it is looked into, so that nobody
else's path leads there any more; directories below are first moved to the top, so that no depth costs stack,
descriptors or a path that is too long. An agent without the power to pass over modes removes them just the same.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

_DIRECTORY = os.O_DIRECTORY | os.O_CLOEXEC


def remove(path: Path | str) -> bool:
    """True once nothing is there; False where something cannot be removed: ask again later. Blocks. The directories
    above `path` must be the caller's own.
    """
    try:
        # an empty one, as most are, need not be opened; of a link this is refused
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return _removed_with_contents(Path(path))
    return True


def _removed_with_contents(path: Path) -> bool:
    try:
        parent = os.open(path.parent, os.O_RDONLY | _DIRECTORY)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        return _remove(parent, path.name)
    except OSError:
        return False
    finally:
        os.close(parent)


def _remove(parent: int, name: str) -> bool:
    if _unlinked(parent, name):
        return True
    top = _take_over(parent, name)
    failed = False
    try:
        waiting = os.listdir(top)
        while waiting:
            try:
                waiting += _dissolve(top, waiting.pop())
            except OSError:
                failed = True
    finally:
        os.close(top)
    if not failed:
        os.rmdir(name, dir_fd=parent)
    return not failed


def _dissolve(top: int, name: str) -> list[str]:
    """Remove one entry of the top; the directories that were in it are entries of the top now, by these names."""
    if _unlinked(top, name):
        return []
    moved = []
    below = _take_over(top, name)
    try:
        for each in os.listdir(below):
            if not _unlinked(below, each):
                # a directory that moves is written to, since its .. changes
                os.close(_take_over(below, each))
                moved.append(f"moved-{secrets.token_hex(16)}")
                os.rename(each, moved[-1], src_dir_fd=below, dst_dir_fd=top)
    finally:
        os.close(below)
    os.rmdir(name, dir_fd=top)
    return moved


def _unlinked(directory: int, name: str) -> bool:
    """True unless it is a directory; a link goes, and what it names stays."""
    with contextlib.suppress(FileNotFoundError):
        try:
            os.unlink(name, dir_fd=directory)
        except IsADirectoryError:
            return False
    return True


def _take_over(directory: int, name: str) -> int:
    """An open directory that is the caller's alone from here on."""
    handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | _DIRECTORY, dir_fd=directory)
    try:
        itself = f"/proc/self/fd/{handle}"
        if os.geteuid() == 0:
            os.chown(itself, 0, 0)
        os.chmod(itself, 0o700)
        return os.open(itself, os.O_RDONLY | _DIRECTORY)
    finally:
        os.close(handle)
