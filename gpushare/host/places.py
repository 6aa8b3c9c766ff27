"""Where an installation for a whole host keeps its things, below a root that is "/" unless a package or a test says so.

Imports the standard library. Invariant: a path that is written into a file (a unit, a configuration) never holds the
root; a path that is opened always does.
"""

from __future__ import annotations

from pathlib import Path

CONFIG_DIR = "/etc/gpushare"
AGENT_CONFIG = f"{CONFIG_DIR}/agent.toml"
AGENT_JOIN = f"{CONFIG_DIR}/agent.join"
SCHEDULER_CONFIG = f"{CONFIG_DIR}/scheduler.toml"
STATE_DIR = "/var/lib/gpushare"
AGENT_STATE = f"{STATE_DIR}/agent"
SCHEDULER_STATE = f"{STATE_DIR}/scheduler"
RUN_DIR = "/run/gpushare"
UNIT_DIR = "/etc/systemd/system"
PROFILE = "/etc/profile.d/gpushare.sh"
INSTALL_DIR = "/opt/gpushare"
CURRENT = f"{INSTALL_DIR}/current"

AGENT_UNIT = "gpushare-agent.service"
SCHEDULER_UNIT = "gpushare-scheduler.service"
# In the order in which they are restarted.
UNITS = {SCHEDULER_UNIT: ("gpushare-scheduler", SCHEDULER_CONFIG), AGENT_UNIT: ("gpushare-agent", AGENT_CONFIG)}

# The cards that are not gpushare's, as a value for CUDA_VISIBLE_DEVICES; the agent writes it, login shells read it.
LOGIN_CARDS = "login-cards"


def below(root: Path, path: str) -> Path:
    """The absolute `path` below `root`."""
    return root / path.lstrip("/")
