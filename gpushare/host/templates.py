"""The files that an installation writes: units, first configurations, the snippet for login shells.

Pure texts; imports the places alone. Invariants: a unit starts its daemon through the `current` link where there is
one, so that an upgrade never touches the unit; the agent's unit never ends a job.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from gpushare.host.places import AGENT_CONFIG, AGENT_JOIN, LOGIN_CARDS, RUN_DIR, SCHEDULER_CONFIG, SCHEDULER_STATE


def agent_unit(program: str) -> str:
    """`program` is the full path of gpushare-agent."""
    return f"""\
[Unit]
Description=gpushare node agent: runs jobs in slices of this host's GPUs
Wants=network-online.target
After=network-online.target nvidia-persistenced.service gpushare-scheduler.service
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={program} --config {AGENT_CONFIG}
Restart=always
RestartSec=2
TimeoutStopSec=15
# Jobs outlive the agent: stopping it ends its own process and nothing else.
KillMode=process
Delegate=yes
TasksMax=infinity
OOMScoreAdjust=-999
RuntimeDirectory={RUN_DIR.removeprefix("/run/")}
RuntimeDirectoryPreserve=yes
# Jobs inherit these two.
LimitNOFILE=65536:524288
LimitMEMLOCK=infinity

[Install]
WantedBy=multi-user.target
"""


def scheduler_unit(program: str, user: str) -> str:
    """`program` is the full path of gpushare-scheduler, `user` the account it runs as."""
    return f"""\
[Unit]
Description=gpushare scheduler
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type=notify
User={user}
ExecStart={program} --config {SCHEDULER_CONFIG}
Restart=always
RestartSec=1
# A long journal takes its time.
TimeoutStartSec=600
TimeoutStopSec=30
LimitNOFILE=65536:524288

[Install]
WantedBy=multi-user.target
"""


def agent_config(managed_gpus: Sequence[str]) -> str:
    """`managed_gpus` as the configuration takes it: ("all",) or UUIDs."""
    return f"""\
# gpushare-agent. What is not here has its default; an unknown key is an error.

# The line of `gpushare node join-token NODE`; it is used once.
join_file = "{AGENT_JOIN}"

# "all", or the UUIDs of the cards that are gpushare's to give (`nvidia-smi -L`); the others are left alone.
managed_gpus = {json.dumps(list(managed_gpus))}

# Directories that this node shares with others: a job from below one goes only to nodes that name it, too.
#shared_paths = ["/home", "/data"]
"""


def scheduler_config(listen: str, advertise: str) -> str:
    """Addresses as host:port; `advertise` "" is left to the scheduler."""
    name = f'advertise = "{advertise}"' if advertise else '#advertise = "head.example.org:7480"'
    return f"""\
# gpushare-scheduler. What is not here has its default; an unknown key is an error.

listen = "{listen}"

# What agents and users connect to, where this host's own name is not it.
{name}

state_dir = "{SCHEDULER_STATE}"
"""


def profile() -> str:
    """For sh, bash and what else reads /etc/profile.d."""
    cards = f"{RUN_DIR}/{LOGIN_CARDS}"
    return f"""\
# Written by `gpushare-agent install --profile`: an interactive login sees only the cards that are not gpushare's.
# Not for root, not inside a job, and not where CUDA_VISIBLE_DEVICES was chosen already.
case $- in
*i*)
    if [ -r {cards} ] && [ -z "${{GPUSHARE_JOB_ID-}}" ] && [ -z "${{CUDA_VISIBLE_DEVICES+set}}" ] &&
        [ "$(id -u)" -ne 0 ]; then
        IFS= read -r CUDA_VISIBLE_DEVICES <{cards}
        export CUDA_VISIBLE_DEVICES
        echo "The GPUs of this host are shared by gpushare; to get one: gpushare run --gpus 1 -- COMMAND"
    fi
    ;;
esac
"""
