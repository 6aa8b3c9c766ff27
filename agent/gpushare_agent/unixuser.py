"""Who a job runs as, asked of the name service (files, LDAP, whatever the host has).

Imports the standard library and the launch vocabulary. May block for as long as the name service does: call
it in a thread.
"""

from __future__ import annotations

import os
import pwd

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


def current() -> UnixUser:
    """The agent's own user, with the groups that its processes have."""
    entry = pwd.getpwuid(os.geteuid())
    found = _user(entry)
    return UnixUser(found.uid, found.gid, tuple(sorted(os.getgroups())), found.name, found.home, found.shell)


def _user(entry: pwd.struct_passwd) -> UnixUser:
    groups = tuple(sorted(os.getgrouplist(entry.pw_name, entry.pw_gid)))
    shell = entry.pw_shell or "/bin/sh"
    return UnixUser(entry.pw_uid, entry.pw_gid, groups, entry.pw_name, entry.pw_dir, shell)
