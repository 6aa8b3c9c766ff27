"""From a configuration and an identity to a running agent: the launcher, what is wrong here, then the daemon.

The order matters: the launcher is started by exec before grpc is imported, because a process that has imported grpc
must never fork; so what imports grpc is imported after it.
"""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path
from typing import Any

from gpushare.config import AgentConfig
from gpushare.errors import GpushareError
from gpushare.host.systemd import Systemd, own_unit_warnings
from gpushare.join import JoinString
from gpushare_agent.agent import StatusRelay
from gpushare_agent.cgroups import CgroupsUnavailable, InstanceInUse
from gpushare_agent.executor import Executor, ExecutorConfig
from gpushare_agent.gpus.catalogue import CatalogueError
from gpushare_agent.identity import Identity, IdentityError, StateDirectory
from gpushare_agent.logsetup import make_log, place_of
from gpushare_agent.scratch import ScratchUnusable

EXIT_FAILED = 1


class StartRefused(Exception):
    """Why the agent cannot run here as it is."""


def run(config: AgentConfig, state: StateDirectory, identity: Identity, join: JoinString | None) -> int:
    """The exit code. Raises StartRefused. Called with the garbage collector off; from here on it is on and passes over
    what was imported."""
    log = make_log()
    relay = StatusRelay()
    try:
        executor = _start_executor(config, identity, relay, log)
    except CgroupsUnavailable as err:
        raise StartRefused(
            f"jobs cannot be confined here: {err} (run the agent where it can make control groups, or, for one user "
            'alone, set containment = "weak" and single_user = true)'
        ) from err
    except InstanceInUse as err:
        raise StartRefused(str(err)) from err
    except OSError as err:
        raise StartRefused(f"the launcher cannot be started: {err}") from err
    warnings = own_unit_warnings(Path("/proc/self/cgroup").read_text(), Systemd())
    for warning in warnings:
        log.warning("this host is not set up as it should be", why=warning)
    # Its notes on every connection that ends say nothing that the agent does not say itself.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from gpushare_agent.daemon import Daemon

    gc.freeze()
    gc.enable()
    try:
        return asyncio.run(Daemon(config, state, identity, executor, relay, join, log, warnings).run())
    except (IdentityError, CatalogueError, ScratchUnusable, GpushareError) as err:
        raise StartRefused(str(err)) from err
    except Exception as err:
        log.error("the agent failed; running jobs go on", error=f"{type(err).__name__}: {err}", at=place_of(err))
        return EXIT_FAILED


def _start_executor(config: AgentConfig, identity: Identity, relay: StatusRelay, log: Any) -> Executor:
    """With control groups if they can be made, else without where the configuration allows it."""

    def executor(weak: bool) -> Executor:
        settings = ExecutorConfig(config.state_dir, identity.instance_id, weak=weak, run_as_self=config.single_user)
        made = Executor(settings, relay)
        made.start_launcher()
        return made

    try:
        return executor(weak=False)
    except CgroupsUnavailable as err:
        if config.containment != "weak":
            raise
        log.warning("containment is weak: no control groups can be made here", why=str(err))
        return executor(weak=True)
