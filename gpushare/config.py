"""What a daemon is told: TOML file + environment + flags -> one frozen struct each for scheduler and agent.

Imports msgspec and the standard library; no core, no grpc. The keys, their units and their bounds are the
structs below, and nothing else is accepted (`configfile` has the rules). Invariants: a struct that was built is
consistent, so no daemon checks its settings again; there is no setting that weakens a bind beyond loopback or a
root agent's containment.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, NoReturn

import msgspec
from msgspec import Meta

from gpushare.address import Address, is_loopback, is_wildcard, parse_address
from gpushare.configfile import (
    ConfigError,
    Setting,
    build,
    read_environment,
    read_flags,
    read_toml,
    refuse_readable_by_others,
)
from gpushare.names import (
    NAME_RULE,
    SHARED_PATHS_MAX,
    TextError,
    check_name,
    check_shared_path,
    check_text,
    shown,
)
from gpushare.weights import FgdWeights, PriceFitWeights

SCHEDULER_ENV_PREFIX = "GPUSHARE_SCHEDULER_"
AGENT_ENV_PREFIX = "GPUSHARE_AGENT_"
SCHEDULER_FILE = "scheduler.toml"
AGENT_FILE = "agent.toml"
DAY_S = 86_400
LABELS_MAX = 64
LABEL_MAX_BYTES = 256

_DEFAULT = "default"
_PORT_MIN, _PORT_MAX = 1024, 65_535
_GPU_UUID = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

Count = Annotated[int, Meta(ge=1)]
Tier = Literal["mps-v2", "timeslice", "exclusive"]


class Caps(msgspec.Struct, frozen=True, kw_only=True):
    """`[caps]` of the scheduler: what one request or one tenant may hold."""

    # Variables of one job, and the bytes of all their names and values.
    env_max_vars: Count = 256
    env_max_bytes: Count = 64 << 10
    # Command line and script together.
    argv_max_bytes: Annotated[int, Meta(ge=1, le=3 << 20)] = 1 << 20
    labels_max: Count = 64
    display_name_max_chars: Annotated[int, Meta(ge=1, le=256)] = 200
    request_id_max_chars: Annotated[int, Meta(ge=36, le=1024)] = 128
    # Indexes of one array, tasks of one job, jobs of one BatchCreateJobs.
    array_max: Annotated[int, Meta(ge=1, le=100_000)] = 1000
    tasks_max: Annotated[int, Meta(ge=1, le=100_000)] = 1024
    batch_max: Annotated[int, Meta(ge=1, le=100_000)] = 1000
    # For tenants that are created without a figure of their own.
    queued_per_tenant: Count = 10_000
    page_max: Annotated[int, Meta(ge=1, le=10_000)] = 1000
    # One message from a client or agent, after decompression.
    message_max_bytes: Annotated[int, Meta(ge=64 << 10, le=64 << 20)] = 4 << 20


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The scheduler's settings."""

    # host:port of the gRPC API.
    listen: str = "127.0.0.1:7480"
    # host:port for join strings, and a name in the certificate; "" is `listen` (or this host's name for 0.0.0.0).
    advertise: str = ""
    # Journal, certificates and lock.
    state_dir: Path
    # No TLS; accepted on a loopback address only.
    insecure: bool = False
    # How long an agent may run jobs without word from the scheduler; it renews every third of it.
    lease_ttl_s: Annotated[int, Meta(ge=3, le=3600)] = 15
    # After a start nobody is declared lost for this long.
    recovery_grace_s: Annotated[int, Meta(ge=0, le=3600)] = 30
    # Which card a task gets of those that fit; one file each in gpushare/core/placement.
    placement_policy: Literal["price_fit", "fgd", "best_fit", "consolidate", "spread"] = "price_fit"
    # How strongly measured load steers shares away from busy cards: 0.0 not at all, 1.0 before all else.
    load_weight: Annotated[float, Meta(ge=0, le=1)] = 0.1
    # Of decayed usage, which fair share goes by: what was used so long ago counts half.
    fair_share_half_life_s: Annotated[int, Meta(ge=60, le=366 * DAY_S)] = 7 * DAY_S
    # A job that borrows runs at least so long before it is reclaimed; a tenant may have a figure of its own.
    min_run_s: Annotated[int, Meta(ge=0, le=30 * DAY_S)] = 0
    # So many blocked jobs at the head of the order get a start in the future which nobody may delay.
    backfill_depth: Annotated[int, Meta(ge=0, le=64)] = 1
    # A job that has waited for longer than this goes to the head of the order.
    starvation_after_s: Annotated[int, Meta(ge=1, le=366 * DAY_S)] = 3600
    # Where the tasks of a gang meet (MASTER_PORT): first and last port, on the node of its first task. Best below what
    # the kernel gives to outgoing connections (net.ipv4.ip_local_port_range).
    gang_port_range: str = "29500-30499"
    # A node on which nothing ran for so long is put to sleep, and woken when a job needs it; 0 is never.
    power_idle_s: Annotated[int, Meta(ge=0)] = 0
    # So many nodes stay awake although nothing runs on them.
    power_keep_nodes: Annotated[int, Meta(ge=0)] = 0
    # The command that puts a node to sleep, as words; {node} stands for its name. No shell is involved.
    power_down_command: tuple[str, ...] = ()
    # The command that wakes it.
    power_up_command: tuple[str, ...] = ()
    # Either command is killed when it takes longer.
    power_command_timeout_s: Annotated[int, Meta(ge=1, le=3600)] = 60
    # A node that is not back so long after it was asked to wake has failed to.
    power_wake_timeout_s: Annotated[int, Meta(ge=1, le=DAY_S)] = 600
    # What people see of other tenants' jobs: "cluster": who runs how much, where and until when, never what; "tenant":
    # nothing. A tenant that is set isolated is left out of it.
    visibility: Literal["cluster", "tenant"] = "cluster"
    # A snapshot is taken after this many events.
    snapshot_every_events: Annotated[int, Meta(ge=1)] = 20_000
    # Attempts lost to the machine are repeated this often, free of the job's own retries, with growing pauses.
    infra_retries: Annotated[int, Meta(ge=0, le=1000)] = 5
    infra_backoff_ms: Annotated[int, Meta(ge=0)] = 1000
    infra_backoff_max_ms: Annotated[int, Meta(ge=0)] = 60_000
    # Requests of one tenant that may wait for the engine, and how many it decides before one fsync.
    inbox_per_tenant: Annotated[int, Meta(ge=1, le=1_000_000)] = 2048
    commit_batch_max: Annotated[int, Meta(ge=1, le=100_000)] = 1024
    # Ended jobs leave memory for the history table after this long.
    archive_after_s: Annotated[int, Meta(ge=0)] = 3600
    # How long a token holds that a person of a trusted host gets without asking an admin; it is renewed silently.
    login_token_ttl_s: Annotated[int, Meta(ge=1, le=30 * DAY_S)] = 43_200
    # First start on an empty store: this tenant, and an admin's token for this user in it ("" is the account's name).
    bootstrap_tenant: str = "default"
    bootstrap_user: str = ""
    caps: Caps = Caps()
    # Weights of the policies that have some.
    price_fit: PriceFitWeights = PriceFitWeights()
    fgd: FgdWeights = FgdWeights()


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A node agent's settings."""

    # host:port of the scheduler; "" takes the one that the agent joined.
    server: str = ""
    # A file of mode 0600 with the join string. Once the agent is enrolled it may be gone; a new line in it enrols anew.
    join_file: Path | None = None
    # Where other nodes reach this one, for the tasks of one job on several nodes; "" is the address of this host from
    # which the scheduler is reached.
    advertise_address: str = ""
    # What jobs may ask of a node (`--node-label rack=r1`): a table, or "rack=r1,site=north".
    labels: dict[str, str] = {}
    # Directories that this node has in common with others, e.g. ["/home", "/data"]: a job from below one goes only to
    # nodes that name it, too. Empty: not known.
    shared_paths: tuple[str, ...] = ()
    # Where people of this host get their tokens (`gpushare login` without a line); "" is nowhere. `login.sock` in
    # `run_dir`, which is where clients look for that of a root agent.
    login_socket: str
    # Accounts below this number are not people; root never is. An agent without root serves its own account alone.
    login_min_uid: Annotated[int, Meta(ge=1, le=2**31 - 1)] = 1000
    # Identity, credentials, launch and exit records.
    state_dir: Path
    # Sockets, leases, pipe directories of MPS: lost at a reboot, and so is everything they belong to.
    run_dir: Path
    # Output of jobs; per attempt and stream `log_cap_mib`, head and tail kept; removed `log_keep_s` after the end.
    log_dir: Path
    log_cap_mib: Annotated[int, Meta(ge=1, le=1 << 20)] = 64
    log_keep_s: Annotated[int, Meta(ge=60)] = 30 * DAY_S
    # A directory of its own for each running task (GPUSHARE_SCRATCH), removed at its end; on a fast local disk, written
    # to by this agent alone.
    scratch_dir: Path
    # "all", or the UUIDs of the cards that are gpushare's to use.
    managed_gpus: tuple[str, ...] = ("all",)
    # Simulated cards ("4xH100-80GB") in place of real ones; "" looks for real ones.
    simulate: str = ""
    # A script of faults for simulated cards.
    simulate_faults: Path | None = None
    # Fences that may be used; a card gets the best of these that it can do.
    tiers: tuple[Tier, ...] = ("mps-v2", "timeslice", "exclusive")
    # Kept back on each card that is shared, for the driver and the MPS server.
    gpu_reserve_mib: Annotated[int, Meta(ge=0, le=1 << 20)] = 512
    # A process that gpushare did not start takes its card out of placement once it holds more than this.
    stranger_threshold_mib: Annotated[int, Meta(ge=0, le=1 << 20)] = 32
    # How often memory per job is compared with its slice; a sample of every tenth look goes to the scheduler.
    watchdog_interval_ms: Annotated[int, Meta(ge=50, le=60_000)] = 500
    # A call to the NVIDIA library that takes longer is given up and its process killed.
    nvml_deadline_ms: Annotated[int, Meta(ge=1000, le=600_000)] = 5000
    # "require" refuses to start where jobs cannot have cgroups of their own; "weak" goes on with sessions and process
    # scans. A root agent needs `single_user` for "weak".
    containment: Literal["require", "weak"]
    # Jobs run as the agent's own user, whoever submits them. Always so without root.
    single_user: bool


class Places(NamedTuple):
    """Where this user's daemons keep things."""

    config_dir: Path
    state_dir: Path
    run_dir: Path


def places(environ: Mapping[str, str] = os.environ, uid: int | None = None) -> Places:
    """System directories for root, else the XDG directories (run under state where there is no XDG_RUNTIME_DIR)."""
    if (os.geteuid() if uid is None else uid) == 0:
        return Places(Path("/etc/gpushare"), Path("/var/lib/gpushare"), Path("/run/gpushare"))
    home = Path(environ.get("HOME") or Path.home())
    config = Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "gpushare"
    state = Path(environ.get("XDG_STATE_HOME") or home / ".local" / "state") / "gpushare"
    runtime = environ.get("XDG_RUNTIME_DIR")
    return Places(config, state, Path(runtime) / "gpushare" if runtime else state / "run")


def right_text(path: Path | None, name: str) -> str:
    """What `--check` says of a configuration that was loaded from `path`, or from the usual file of that `name`."""
    usual = places().config_dir / name
    if path is None and not usual.exists():
        return f"there is no {usual}; the defaults and the environment are right"
    return f"{path or usual} is right"


def load_scheduler_config(
    path: Path | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    flags: Mapping[str, object] | None = None,
    uid: int | None = None,
) -> SchedulerConfig:
    """`path`, else scheduler.toml in the configuration directory if there is one. Raises ConfigError."""
    where = places(environ, uid)
    layers = [
        {"state_dir": Setting(where.state_dir / "scheduler", _DEFAULT)},
        _file(path, where.config_dir / SCHEDULER_FILE),
        read_environment(SCHEDULER_ENV_PREFIX, SchedulerConfig, environ),
        read_flags(flags or {}),
    ]
    config, said = build(SchedulerConfig, layers)
    _check_address(said, "listen", config.listen, minimum_port=0)
    if config.advertise:
        _check_address(said, "advertise", config.advertise)
    if config.insecure and not is_loopback(parse_address(config.listen, minimum_port=0).host):
        _refuse(said, "insecure", f"listen is {config.listen}; without TLS it must be a loopback address")
    if config.infra_backoff_ms > config.infra_backoff_max_ms:
        _refuse(said, "infra_backoff_ms", f"is above infra_backoff_max_ms, {config.infra_backoff_max_ms}")
    _check_power(config, said)
    try:
        gang_ports(config)
    except TextError as err:
        _refuse(said, "gang_port_range", f"{shown(err.value)} {err.why}; accepted: {err.accepted}")
    for key, name in (("bootstrap_tenant", config.bootstrap_tenant), ("bootstrap_user", config.bootstrap_user)):
        try:
            if key == "bootstrap_tenant" or name:
                check_name(name)
        except TextError as err:
            _refuse(said, key, f"{err.args[0]}", f"Set {key} to {NAME_RULE}.")
    if config.caps.argv_max_bytes + config.caps.env_max_bytes >= config.caps.message_max_bytes:
        _refuse(said, "caps.argv_max_bytes", "argv_max_bytes and env_max_bytes together fill message_max_bytes")
    return config


def gang_ports(config: SchedulerConfig) -> tuple[int, int]:
    """First and last port of `gang_port_range`. Raises TextError."""
    text = config.gang_port_range
    found = re.fullmatch(r"([0-9]{4,5})-([0-9]{4,5})", text, re.ASCII)
    if found is None or not _PORT_MIN <= int(found[1]) <= int(found[2]) <= _PORT_MAX:
        raise TextError("gang_port_range", text, "is no range of ports", f"FIRST-LAST from {_PORT_MIN} to {_PORT_MAX}")
    return int(found[1]), int(found[2])


def _check_power(config: SchedulerConfig, said: Mapping[str, Setting]) -> None:
    """Who sends nodes to sleep must be able to wake them."""
    for key, words in (
        ("power_down_command", config.power_down_command),
        ("power_up_command", config.power_up_command),
    ):
        if config.power_idle_s and not words:
            _refuse(said, "power_idle_s", f"is set, and {key} is not", f"Set {key} too, or power_idle_s to 0.")
        if words and not any("{node}" in word for word in words):
            _refuse(said, key, "does not say which node", "Put {node} where its name belongs.")


def join_address(config: SchedulerConfig, bound: Address) -> str:
    """What join strings say: `advertise`, else the address that was bound, with this host's name for 0.0.0.0 and ::."""
    if config.advertise:
        return str(parse_address(config.advertise))
    return str(Address(socket.gethostname(), bound.port) if is_wildcard(bound.host) else bound)


def load_agent_config(
    path: Path | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    flags: Mapping[str, object] | None = None,
    uid: int | None = None,
) -> AgentConfig:
    """`path`, else agent.toml in the configuration directory if there is one. Raises ConfigError."""
    uid = os.geteuid() if uid is None else uid
    where = places(environ, uid)
    layers = [
        _agent_defaults(where, uid),
        _file(path, where.config_dir / AGENT_FILE),
        read_environment(AGENT_ENV_PREFIX, AgentConfig, environ),
        read_flags(flags or {}),
    ]
    config, said = build(AgentConfig, layers)
    if said["log_dir"].source == _DEFAULT:
        config = msgspec.structs.replace(config, log_dir=config.state_dir / "logs")
    if said["login_socket"].source == _DEFAULT:
        config = msgspec.structs.replace(config, login_socket=str(config.run_dir / "login.sock"))
    elif config.login_socket and not config.login_socket.startswith("/"):
        _refuse(said, "login_socket", f"{shown(config.login_socket)} is no absolute path", 'Write one, or "" for none.')
    if said["scratch_dir"].source == _DEFAULT:
        config = msgspec.structs.replace(config, scratch_dir=config.state_dir / "scratch")
    if config.server:
        _check_address(said, "server", config.server)
    if config.advertise_address:
        _check_host(said, "advertise_address", config.advertise_address)
    _check_labels(config.labels, said)
    if config.join_file is not None and os.path.exists(config.join_file):
        refuse_readable_by_others(config.join_file, "join_file")
    _check_cards(config, said)
    _check_shared_paths(config, said)
    if uid != 0 and not config.single_user:
        _refuse(said, "single_user", "only root can run jobs as other users")
    if uid == 0 and config.containment == "weak" and not config.single_user:
        _refuse(said, "containment", "a root agent that serves several users needs cgroups", 'Set it to "require".')
    return config


def _agent_defaults(where: Places, uid: int) -> dict[str, Setting]:
    values: dict[str, object] = {
        "state_dir": where.state_dir / "agent",
        "run_dir": where.run_dir,
        "log_dir": where.state_dir / "agent" / "logs",
        "login_socket": str(where.run_dir / "login.sock"),
        "scratch_dir": where.state_dir / "agent" / "scratch",
        "containment": "require" if uid == 0 else "weak",
        "single_user": uid != 0,
    }
    return {key: Setting(value, _DEFAULT) for key, value in values.items()}


def _check_host(said: Mapping[str, Setting], key: str, host: str) -> None:
    """A name or an address, without a port."""
    try:
        parse_address(f"[{host}]" if ":" in host else host)
    except TextError:
        _refuse(said, key, f"{shown(host)} is neither a host's name nor an address")


def _check_labels(labels: Mapping[str, str], said: Mapping[str, Setting]) -> None:
    """What a scheduler takes and a job can ask for."""
    if len(labels) > LABELS_MAX:
        _refuse(said, "labels", f"names {len(labels)} labels; accepted: {LABELS_MAX}")
    for name, value in labels.items():
        key = f"labels.{name}" if f"labels.{name}" in said else "labels"
        try:
            check_text(name, "label", max_bytes=LABEL_MAX_BYTES)
            check_text(value, "value", max_bytes=LABEL_MAX_BYTES)
        except TextError as err:
            _refuse(said, key, str(err))
        if not name or "=" in name:
            _refuse(said, key, f"{shown(name)} is no name of a label: it is empty or has a =")


def _check_shared_paths(config: AgentConfig, said: Mapping[str, Setting]) -> None:
    if len(config.shared_paths) > SHARED_PATHS_MAX:
        _refuse(said, "shared_paths", f"names {len(config.shared_paths)} paths; accepted: {SHARED_PATHS_MAX}")
    for path in config.shared_paths:
        try:
            check_shared_path(path)
        except TextError as err:
            _refuse(said, "shared_paths", f"{shown(err.value)} {err.why}; accepted: {err.accepted}")


def is_gpu_uuid(text: str) -> bool:
    """A card's name as the driver gives it."""
    return _GPU_UUID.fullmatch(text) is not None


def _check_cards(config: AgentConfig, said: Mapping[str, Setting]) -> None:
    if config.managed_gpus != ("all",):
        for each in config.managed_gpus:
            if not is_gpu_uuid(each):
                _refuse(said, "managed_gpus", f'{shown(each)} is neither "all" alone nor a UUID of a card (GPU-...)')
    for key, items in (
        ("managed_gpus", config.managed_gpus), ("tiers", config.tiers), ("shared_paths", config.shared_paths),
    ):  # fmt: skip
        if len(set(items)) != len(items):
            _refuse(said, key, "names something twice")
    if config.simulate_faults is not None and not config.simulate:
        _refuse(said, "simulate_faults", "is only for simulated cards", "Set `simulate` too.")


def _file(path: Path | None, usual: Path) -> dict[str, Setting]:
    """The named file, which must exist, or the usual one if it does."""
    if path is not None:
        return read_toml(path)
    return read_toml(usual) if usual.exists() else {}


def _check_address(said: Mapping[str, Setting], key: str, text: str, minimum_port: int = 1) -> None:
    try:
        parse_address(text, key, minimum_port=minimum_port)
    except TextError as err:
        _refuse(said, key, f"{shown(err.value)} {err.why}; accepted: {err.accepted}")


def _refuse(said: Mapping[str, Setting], key: str, why: str, what_to_do: str = "") -> NoReturn:
    raise ConfigError(said.get(key, Setting(None, _DEFAULT)), key, why, what_to_do)
