"""Who a job runs as, asked of the name service (files, LDAP, whatever the host has).

Imports the standard library and the launch vocabulary. May block for as long as the name service does: call
it in a thread.
"""

from __future__ import annotations

import grp
import os
import pwd
from typing import NamedTuple

from gpushare.reasons import Reason
from gpushare_agent.launchspec import LaunchRefused, UnixUser


def resolve(name: str) -> UnixUser:
    """The user with every supplementary group; LaunchRefused(UNIX_USER_UNMAPPED) if there is none, or if it is
    root.
    """
    try:
        entry = pwd.getpwnam(name)
    except (KeyError, ValueError):
        text = f"this node knows no Unix user '{name}' (getpwnam)"
        raise LaunchRefused(Reason.UNIX_USER_UNMAPPED, text) from None
    except OSError as error:
        text = f"the name service could not look up Unix user '{name}': {error}"
        raise LaunchRefused(Reason.UNIX_USER_UNMAPPED, text) from None
    if entry.pw_uid == 0:
        raise LaunchRefused(Reason.UNIX_USER_UNMAPPED, f"Unix user '{name}' is root here; no job runs as root")
    return _user(entry)


class Person(NamedTuple):
    """An account of this host with the names of all its groups."""

    uid: int
    name: str
    groups: tuple[str, ...]


def person(uid: str) -> Person:
    """Who the account `uid` is; LaunchRefused(UNIX_USER_UNMAPPED) if there is none.

    An account whose name leads to another one is nobody: a local file may hide the directory's, and jobs run by name.
    """
    try:
        entry = pwd.getpwuid(int(uid))
        if pwd.getpwnam(entry.pw_name).pw_uid != entry.pw_uid:
            text = f"the name {entry.pw_name!r} of account {uid} is another account's, too"
            raise LaunchRefused(Reason.UNIX_USER_UNMAPPED, text)
        gids = os.getgrouplist(entry.pw_name, entry.pw_gid)
    except (KeyError, ValueError):
        raise LaunchRefused(Reason.UNIX_USER_UNMAPPED, f"this host knows no account {uid}") from None
    except OSError as error:
        text = f"the name service could not look up account {uid}: {error}"
        raise LaunchRefused(Reason.UNIX_USER_UNMAPPED, text) from None
    return Person(entry.pw_uid, entry.pw_name, tuple(sorted(filter(None, map(_group_name, gids)))))


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""


def current() -> UnixUser:
    """The agent's own user, with the groups that its processes have."""
    entry = pwd.getpwuid(os.geteuid())
    found = _user(entry)
    return UnixUser(found.uid, found.gid, tuple(sorted(os.getgroups())), found.name, found.home, found.shell)


def _user(entry: pwd.struct_passwd) -> UnixUser:
    groups = tuple(sorted(os.getgrouplist(entry.pw_name, entry.pw_gid)))
    shell = entry.pw_shell or "/bin/sh"
    return UnixUser(entry.pw_uid, entry.pw_gid, groups, entry.pw_name, entry.pw_dir, shell)
