"""The scheduler daemon from a configuration to its exit code: store, engine, API, in that order.

Imported by `main` once the configuration is right: what a daemon needs takes a second to load.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import sys
import time

import structlog

from gpushare.address import is_wildcard
from gpushare.config import SchedulerConfig, gang_ports, join_address
from gpushare.core.commands import Call, CoreSettings, Housekeep
from gpushare.core.lifecycle import BrokenInvariant
from gpushare.core.model import SYSTEM, TenantSettings
from gpushare.errors import GpushareError
from gpushare.host import notify
from gpushare.rpc import bind
from gpushare.scheduler.bootstrap import bootstrap
from gpushare.scheduler.engine import Engine
from gpushare.scheduler.pki import PkiLeaf
from gpushare.scheduler.server import ApiServer
from gpushare.store.port import StoreError
from gpushare.store.sqlite import SqliteStore
from gpushare.weights import PolicyWeights

HOUSEKEEPING_S = 30.0
STOP_GRACE_S = 3.0
FILES_WANTED = 65_536
# New containers before the youngest are looked at, then how many such looks before each older generation's. A look
# takes about 1 ms for each thousand of the young, and gRPC leaves some of them at every call.
COLLECT_AFTER = (3_000, 50, 50)

log = structlog.get_logger("scheduler")


def run(config: SchedulerConfig) -> int:
    """Serves until a signal. The exit code; where it cannot start, with the cause on stderr."""
    _configure_log()
    try:
        return asyncio.run(_serve(config))
    except StoreError as err:
        return _cannot_start("STORE_UNAVAILABLE", str(err))
    except BrokenInvariant as err:
        return _cannot_start("INTERNAL", f"the journal contradicts itself: {err}; restore a backup, and report this")
    except GpushareError as err:
        return _cannot_start(err.reason, f"{err.message} ({err.what_to_do})")
    except OSError as err:
        return _cannot_start("CONFIG_INVALID", f"{err} (listen is {config.listen}, state_dir is {config.state_dir})")


def _cannot_start(reason: str, text: str) -> int:
    print(f"error: {reason}: {text}", file=sys.stderr)
    return 1


def _configure_log() -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )


def core_settings(config: SchedulerConfig) -> CoreSettings:
    """The configuration's share of the core's numbers."""
    caps = config.caps
    first_port, last_port = gang_ports(config)
    return CoreSettings(
        display_name_max_chars=caps.display_name_max_chars,
        env_max_vars=caps.env_max_vars,
        env_max_bytes=caps.env_max_bytes,
        argv_max_bytes=caps.argv_max_bytes,
        labels_max=caps.labels_max,
        array_max=caps.array_max,
        tasks_max=caps.tasks_max,
        batch_max=caps.batch_max,
        request_id_max_chars=caps.request_id_max_chars,
        lease_ttl_ms=config.lease_ttl_s * 1000,
        policy=config.placement_policy,
        weights=PolicyWeights(price_fit=config.price_fit, fgd=config.fgd),
        infra_retries=config.infra_retries,
        infra_backoff_ms=config.infra_backoff_ms,
        infra_backoff_max_ms=config.infra_backoff_max_ms,
        load_weight=config.load_weight,
        fair_share_half_life_ms=config.fair_share_half_life_s * 1000,
        min_run_ms=config.min_run_s * 1000,
        backfill_depth=config.backfill_depth,
        starvation_after_ms=config.starvation_after_s * 1000,
        gang_first_port=first_port,
        gang_last_port=last_port,
        power_idle_ms=config.power_idle_s * 1000,
        power_keep_nodes=config.power_keep_nodes,
        power_wake_timeout_ms=config.power_wake_timeout_s * 1000,
    )


def _allow_many_connections() -> None:
    """A shell often lets a program have 1,024 descriptors and more if it asks; each connection takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, FILES_WANTED)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def _serve(config: SchedulerConfig) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    _allow_many_connections()
    config.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = Engine(
        SqliteStore(config.state_dir / "journal.db"),
        core_settings(config),
        wall_ms=lambda: time.time_ns() // 1_000_000,
        holder=f"pid {os.getpid()}",
        inbox_per_tenant=config.inbox_per_tenant,
        batch_max=config.commit_batch_max,
        snapshot_every=config.snapshot_every_events,
    )
    await engine.start()
    _collect_rarely()
    try:
        await _serve_api(config, engine, stop)
    finally:
        await engine.stop()
    return 0


def _collect_rarely() -> None:
    """Keep Python's cycle collector off the state: it is large, grows by what callers submit and has no cycles, and
    going through it again and again took a third of a batch's time and stopped every call for tens of ms."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


async def _serve_api(config: SchedulerConfig, engine: Engine, stop: asyncio.Event) -> None:
    leaf = None
    if not config.insecure:
        names = [config.advertise.rpartition(":")[0]] if config.advertise else []
        leaf = PkiLeaf(config.state_dir / "pki", config.listen, names)
    api = ApiServer(engine, config, ca_pem=leaf.pki.ca_pem if leaf else "")
    address = bind(api.server, config.listen, leaf)
    api.join_address = join_address(config, address)
    join_file = await bootstrap(
        engine,
        config.state_dir,
        tenant=config.bootstrap_tenant,
        settings=TenantSettings(max_queued_jobs=config.caps.queued_per_tenant),
        user=config.bootstrap_user,
        address=api.join_address,
        ca_pem=leaf.pki.ca_pem if leaf else "",
    )
    await api.start()
    notify.ready()
    log.info("serving", address=str(address), tls=leaf is not None, admin_join=str(join_file) if join_file else None)
    if is_wildcard(address.host) and not config.advertise:
        log.info("join strings name this host; set `advertise` if agents reach it by another name")
    keeper = asyncio.create_task(_housekeep(engine, config.archive_after_s * 1000))
    try:
        await stop.wait()
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        await api.stop(STOP_GRACE_S)


async def _housekeep(engine: Engine, archive_after_ms: int) -> None:
    """Let go of what is old, in bounded portions; a store in trouble is the engine's concern, not this task's end."""
    while True:
        await asyncio.sleep(HOUSEKEEPING_S)
        try:
            await engine.leave_cramped()
            command = Housekeep(engine.now_ms() - archive_after_ms)
            while (await engine.execute(command, Call(SYSTEM), lambda _, outcome: outcome)).is_partial:
                await asyncio.sleep(0)
        except GpushareError as err:
            log.warning("housekeeping put off", error=str(err))
