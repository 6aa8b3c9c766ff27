"""Settings: three sources, one struct, and refusals that name file, line and key."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import get_args, get_type_hints

import msgspec
import pytest

from gpushare.address import Address
from gpushare.config import Caps, SchedulerConfig, join_address, load_agent_config, load_scheduler_config, places
from gpushare.configfile import ConfigError, refuse_readable_by_others
from gpushare.core.commands import CoreSettings
from gpushare.core.placement import POLICIES, make_policy
from gpushare.core.placement.fgd import Fgd
from gpushare.core.placement.price_fit import PriceFit
from gpushare.reasons import Reason
from gpushare.scheduler.daemon import core_settings
from gpushare.weights import FgdWeights, PriceFitWeights

UUID = "GPU-01234567-89ab-cdef-0123-456789abcdef"


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path)}


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "daemon.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refused(tmp_path: Path, text: str | bytes, *, agent: bool = False, uid: int = 1000) -> ConfigError:
    load = load_agent_config if agent else load_scheduler_config
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, text), environ={"HOME": str(tmp_path)}, uid=uid)
    assert caught.value.reason is Reason.CONFIG_INVALID
    return caught.value


def test_defaults_need_no_file(home: dict[str, str], tmp_path: Path) -> None:
    scheduler = load_scheduler_config(environ=home, uid=1000)
    assert scheduler.listen == "127.0.0.1:7480"
    assert scheduler.lease_ttl_s == 15
    assert scheduler.state_dir == tmp_path / ".local/state/gpushare/scheduler"
    assert (scheduler.caps.queued_per_tenant, scheduler.caps.page_max) == (10_000, 1000)
    agent = load_agent_config(environ=home, uid=1000)
    assert agent.log_dir == tmp_path / ".local/state/gpushare/agent/logs"
    assert agent.run_dir == tmp_path / ".local/state/gpushare/run"
    assert agent.gpu_reserve_mib == 512
    assert (agent.containment, agent.single_user) == ("weak", True)


def test_root_uses_system_directories_and_requires_containment() -> None:
    assert places({}, 0) == (Path("/etc/gpushare"), Path("/var/lib/gpushare"), Path("/run/gpushare"))
    agent = load_agent_config(environ={}, uid=0)
    assert agent.state_dir == Path("/var/lib/gpushare/agent")
    assert (agent.containment, agent.single_user) == ("require", False)


def test_xdg_directories(tmp_path: Path) -> None:
    environ = {"HOME": "/h", "XDG_CONFIG_HOME": str(tmp_path), "XDG_STATE_HOME": "/s", "XDG_RUNTIME_DIR": "/r"}
    assert places(environ, 1000) == (tmp_path / "gpushare", Path("/s/gpushare"), Path("/r/gpushare"))
    (tmp_path / "gpushare").mkdir()
    (tmp_path / "gpushare/scheduler.toml").write_text('advertise = "gpu01:7480"')
    assert load_scheduler_config(environ=environ, uid=1000).advertise == "gpu01:7480"


def test_join_strings_name_an_address_that_can_be_dialled(home: dict[str, str]) -> None:
    config = load_scheduler_config(environ=home, uid=1000)
    assert join_address(config, Address("127.0.0.1", 4711)) == "127.0.0.1:4711"
    assert join_address(config, Address("::", 4711)) == f"{socket.gethostname()}:4711"
    config = load_scheduler_config(environ=home, flags={"advertise": "gpu01.lab"}, uid=1000)
    assert join_address(config, Address("0.0.0.0", 4711)) == "gpu01.lab:7480"


def test_flags_beat_environment_beats_file(tmp_path: Path, home: dict[str, str]) -> None:
    path = written(tmp_path, "lease_ttl_s = 20\ninfra_retries = 1\nsnapshot_every_events = 7\n")
    environ = {**home, "GPUSHARE_SCHEDULER_LEASE_TTL_S": "30s", "GPUSHARE_SCHEDULER_INFRA_RETRIES": "2"}
    config = load_scheduler_config(path, environ=environ, flags={"lease_ttl_s": 40, "listen": None}, uid=1000)
    assert (config.lease_ttl_s, config.infra_retries, config.snapshot_every_events) == (40, 2, 7)


def test_quantities_with_and_without_units(tmp_path: Path, home: dict[str, str]) -> None:
    text = f"""
    log_cap_mib = "1GiB"
    log_keep_s = "7d"
    watchdog_interval_ms = "0.25s"
    gpu_reserve_mib = 256
    managed_gpus = ["{UUID}"]
    tiers = ["timeslice", "exclusive"]
    single_user = true
    simulate_faults = "faults.json"
    simulate = "4xH100-80GB"
    """
    agent = load_agent_config(written(tmp_path, text), environ=home, uid=1000)
    assert (agent.log_cap_mib, agent.log_keep_s, agent.watchdog_interval_ms, agent.gpu_reserve_mib) == (
        1024, 604_800, 250, 256,
    )  # fmt: skip
    assert (agent.managed_gpus, agent.tiers) == ((UUID,), ("timeslice", "exclusive"))
    assert agent.simulate_faults == Path.cwd() / "faults.json"
    scheduler = load_scheduler_config(written(tmp_path, '[caps]\nmessage_max_bytes = "8MiB"'), environ=home, uid=1000)
    assert scheduler.caps.message_max_bytes == 8 << 20


def test_environment_reaches_tables_lists_and_booleans(home: dict[str, str]) -> None:
    environ = {
        **home,
        "GPUSHARE_SCHEDULER_CAPS_ARRAY_MAX": "5",
        "GPUSHARE_SCHEDULER_INSECURE": "true",
        "GPUSHARE_AGENT_TIERS": "exclusive,timeslice",
        "GPUSHARE_AGENT_MANAGED_GPUS": "all",
        "GPUSHARE_SERVER": "elsewhere:1",
    }
    scheduler = load_scheduler_config(environ=environ, uid=1000)
    assert (scheduler.caps.array_max, scheduler.insecure) == (5, True)
    agent = load_agent_config(environ=environ, uid=1000)
    assert (agent.tiers, agent.managed_gpus, agent.server) == (("exclusive", "timeslice"), ("all",), "")


@pytest.mark.parametrize(
    ("text", "line", "key", "why"),
    [
        ("\nlisen = 'x'", 2, "lisen", "did you mean listen?"),
        ("[caps]\narray_maximum = 3", 2, "caps.array_maximum", "did you mean caps.array_max?"),
        ("[server]\nx = 1", 2, "server.x", "no such key"),
        ("# a\n\nlease_ttl_s = 15\nlease_ttl_s = 15", 4, "lease_ttl_s", "a second time"),
        ("[caps]\narray_max = 1\n[caps]\nbatch_max = 1", 3, "caps", "a second time"),
        ("lease_ttl_s = '15MiB'", 1, "lease_ttl_s", "is no time"),
        ("lease_ttl_s = '1500ms'", 1, "lease_ttl_s", "whole number of seconds"),
        ("[caps]\n\nargv_max_bytes = '10s'", 3, "caps.argv_max_bytes", "unknown unit"),
        ("lease_ttl_s = -15", 1, "lease_ttl_s", "is below 3"),
        ("lease_ttl_s = '-15s'", 1, "lease_ttl_s", "is negative"),
        ("lease_ttl_s = 0", 1, "lease_ttl_s", "is zero"),
        ("lease_ttl_s = '2h'", 1, "lease_ttl_s", "is not from 3 to 3600"),
        ("lease_ttl_s = 15.0", 1, "lease_ttl_s", 'a whole number or a text like "10s"'),
        ("lease_ttl_s = true", 1, "lease_ttl_s", "a whole number"),
        ("lease_ttl_s = [15]", 1, "lease_ttl_s", "a whole number"),
        ("lease_ttl_s = ' 15 '", 1, "lease_ttl_s", "no time"),
        ("lease_ttl_s = '1_5'", 1, "lease_ttl_s", "no time"),
        ("lease_ttl_s = '１５'", 1, "lease_ttl_s", "outside ASCII"),
        ("lease_ttl_s = 99999999999999999999", 1, "lease_ttl_s", "is above 3600"),
        ("lease_ttl_s = nan", 1, "lease_ttl_s", "a whole number"),
        ("insecure = 'yes'", 1, "insecure", "true or false"),
        ("insecure = 1", 1, "insecure", "true or false"),
        ("listen = 7480", 1, "listen", "a text"),
        ("listen = 'a b:1'", 1, "listen", "HOST:PORT"),
        ("advertise = 'gpu01:0'", 1, "advertise", "HOST:PORT"),
        ("insecure = true\nlisten = '0.0.0.0:7480'", 1, "insecure", "loopback"),
        ("state_dir = ''", 1, "state_dir", "a path"),
        ('state_dir = "a\\u0000b"', 1, "state_dir", "a text"),
        ("infra_backoff_ms = 2000\ninfra_backoff_max_ms = 1000", 1, "infra_backoff_ms", "infra_backoff_max_ms"),
        ("[caps]\nargv_max_bytes = '3MiB'\nmessage_max_bytes = '2MiB'", 2, "caps.argv_max_bytes", "message_max_bytes"),
        ("load_weight = 1.1", 1, "load_weight", "is not from 0"),
        ("load_weight = -0.1", 1, "load_weight", "is not from 0"),
        ("load_weight = nan", 1, "load_weight", "is not from 0"),
        ("load_weight = true", 1, "load_weight", "a number like 0.5"),
        ("load_weight = '5e-1'", 1, "load_weight", "a number like 0.5"),
        ("weight = 1", 1, "weight", "no such key"),
        ("[price_fit]\naverage = 1", 2, "price_fit.average", "did you mean price_fit.average_part?"),
        ("[price_fit]\naverage_part = 1.1", 2, "price_fit.average_part", "is not from 0 to 1"),
        ("[price_fit]\nloads = 1.2", 2, "price_fit.loads", "a list of numbers"),
        ("[price_fit]\nloads = []", 2, "price_fit.loads", "a list of numbers"),
        ("[price_fit]\nloads = [1.2, 'x']", 2, "price_fit.loads", "a number like 0.5"),
        ("[price_fit]\nloads = [1.0]", 2, "price_fit.loads", "'1.0' is not from 1.01 to 10"),
        (f"[price_fit]\nloads = {[1.5] * 17}", 2, "price_fit.loads", "has 17 entries; accepted: 16"),
        ("[fgd]\nwindow_tasks = 0", 2, "fgd.window_tasks", "is zero"),
        ("[spread]\nx = 1", 2, "spread.x", "no such key"),
        ("placement_policy = 'random'", 1, "placement_policy", "'best_fit'"),
        ("fair_share_half_life_s = '1s'", 1, "fair_share_half_life_s", "is not from 60"),
        ("backfill_depth = 65", 1, "backfill_depth", "is above 64"),
        ("gang_port_range = '29500'", 1, "gang_port_range", "FIRST-LAST from 1024 to 65535"),
        ("gang_port_range = '30000-29500'", 1, "gang_port_range", "is no range of ports"),
        ("gang_port_range = '80-29500'", 1, "gang_port_range", "is no range of ports"),
        ("gang_port_range = '29500-99999'", 1, "gang_port_range", "is no range of ports"),
        ("gang_port_range = 29500", 1, "gang_port_range", "a text"),
        ("starvation_after_s = 0", 1, "starvation_after_s", "is zero"),
        ("power_idle_s = '10m'", 1, "power_idle_s", "power_down_command is not"),
        (
            "power_idle_s = '10m'\npower_down_command = ['off', '{node}']",
            1,
            "power_idle_s",
            "power_up_command is not",
        ),
        ("power_up_command = ['wake']", 1, "power_up_command", "does not say which node"),
        ("power_up_command = []", 1, "power_up_command", "a list of texts"),
        ("a =", 1, "a", "no TOML"),
        ("listen = 'x\n", 1, "listen", "no TOML"),
        ("x = " + "9" * 9999, 1, "x", "no TOML"),
        ("caps = 5", 1, "caps", "no such key"),
    ],
)  # fmt: skip
def test_refusals_name_file_line_and_key(tmp_path: Path, text: str, line: int, key: str, why: str) -> None:
    error = refused(tmp_path, text)
    assert (error.source, error.line, error.key) == (str(tmp_path / "daemon.toml"), line, key)
    assert why in error.message
    assert error.message.startswith(f"{tmp_path}/daemon.toml:{line}: {key}: ")


def test_unreadable_files_are_refused(tmp_path: Path, home: dict[str, str]) -> None:
    assert refused(tmp_path, b"a = 1\nb = '\xff'").line == 2
    assert "larger than" in refused(tmp_path, "#" * (2 << 20)).message
    assert "no TOML" in refused(tmp_path, "x = " + "[" * 100_000).message
    with pytest.raises(ConfigError, match="No such file"):
        load_scheduler_config(tmp_path / "absent.toml", environ=home, uid=1000)


@pytest.mark.parametrize(
    ("text", "key", "why"),
    [
        ("managed_gpus = ['0']", "managed_gpus", "UUID"),
        (f"managed_gpus = ['all', '{UUID}']", "managed_gpus", "UUID"),
        (f"managed_gpus = ['{UUID}', '{UUID}']", "managed_gpus", "twice"),
        ("managed_gpus = []", "managed_gpus", "a list of texts"),
        ("managed_gpus = [1]", "managed_gpus", "a list of texts"),
        ("tiers = ['mig']", "tiers", "'mps-v2', 'timeslice'"),
        ("containment = 'none'", "containment", "'require'"),
        ("node_name = 'gpu-1'", "node_name", "no such key"),
        ("advertise_address = 'gpu07:7480'", "advertise_address", "neither"),
        ("advertise_address = '10.0.0'", "advertise_address", "neither"),
        ("labels = 'rack'", "labels", "K=V"),
        ("labels = 'rack=1,rack=2'", "labels", "each name once"),
        ("labels.rack = 1", "labels.rack", "a text"),
        ("labels.rack = {row = 'x'}", "labels.rack", "a text"),
        ('labels.rack = "a\\u0007"', "labels.rack", "U+0007"),
        (f"labels.rack = '{'x' * 257}'", "labels.rack", "257 bytes"),
        ("labels.'' = 'x'", "labels.", "empty"),
        ("labels.'a=b' = 'x'", "labels.a=b", "has a ="),
        ("server = 'x:y'", "server", "HOST:PORT"),
        ("simulate_faults = 'f'", "simulate_faults", "only for simulated"),
        ("watchdog_interval_ms = -1", "watchdog_interval_ms", "below 50"),
        ("gpu_reserve_mib = '-1MiB'", "gpu_reserve_mib", "negative"),
        ("single_user = false", "single_user", "only root"),
    ],
)
def test_agent_refusals(tmp_path: Path, text: str, key: str, why: str) -> None:
    error = refused(tmp_path, text, agent=True)
    assert (error.line, error.key) == (1, key)
    assert why in error.message


def test_labels_are_a_table_or_pairs_and_the_later_source_wins_whole(tmp_path: Path, home: dict[str, str]) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("[labels]\nrack = 'r1'\n'example.org/site' = 'north = 1'\n")
    assert load_agent_config(path, environ=home, uid=1000).labels == {"rack": "r1", "example.org/site": "north = 1"}
    environ = {**home, "GPUSHARE_AGENT_LABELS": "zone=z2,rack="}
    assert load_agent_config(path, environ=environ, uid=1000).labels == {"zone": "z2", "rack": ""}
    assert load_agent_config(path, environ={**home, "GPUSHARE_AGENT_LABELS": ""}, uid=1000).labels == {}
    assert load_agent_config(environ=home, uid=1000).labels == {}
    with pytest.raises(ConfigError, match="65 labels"):
        load_agent_config(environ=home, flags={"labels": {f"l{number}": "" for number in range(65)}}, uid=1000)


def test_a_host_whose_name_is_no_node_name_starts_an_agent(
    home: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "gpu_01")
    assert load_agent_config(environ=home, uid=1000).server == ""


def test_a_root_agent_weakens_containment_for_a_single_user_only(tmp_path: Path) -> None:
    assert refused(tmp_path, "containment = 'weak'", agent=True, uid=0).key == "containment"
    flags = {"containment": "weak", "single_user": True}
    assert load_agent_config(environ={}, flags=flags, uid=0).containment == "weak"


def test_unknown_or_wrong_environment_and_flags_are_named(home: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"GPUSHARE_AGENT_STATEDIR.*did you mean GPUSHARE_AGENT_STATE_DIR"):
        load_agent_config(environ={**home, "GPUSHARE_AGENT_STATEDIR": "x"}, uid=1000)
    with pytest.raises(ConfigError, match="environment variable GPUSHARE_SCHEDULER_LEASE_TTL_S: lease_ttl_s: "):
        load_scheduler_config(environ={**home, "GPUSHARE_SCHEDULER_LEASE_TTL_S": "soon"}, uid=1000)
    with pytest.raises(ConfigError, match="flag --lease-ttl-s: lease_ttl_s: "):
        load_scheduler_config(environ=home, flags={"lease_ttl_s": "soon"}, uid=1000)


@pytest.mark.parametrize("key", ["lease_ttl_s", "load_weight"])
def test_a_number_that_python_does_not_print_is_refused_like_another(
    tmp_path: Path, home: dict[str, str], key: str
) -> None:
    with pytest.raises(ConfigError, match=f":1: {key}: this number has more than 1024 bits"):
        load_scheduler_config(written(tmp_path, f"{key} = 0x{'f' * 5000}"), environ=home, uid=1000)


def test_a_secret_that_others_can_read_is_refused_without_being_shown(tmp_path: Path, home: dict[str, str]) -> None:
    secret = tmp_path / "join"
    secret.write_text("gps-join-v1.hidden")
    secret.chmod(0o600)
    path = written(tmp_path, f"\njoin_file = '{secret}'")
    assert load_agent_config(path, environ=home, uid=1000).join_file == secret
    for mode in (0o640, 0o604, 0o644, 0o660):
        secret.chmod(mode)
        with pytest.raises(ConfigError, match=r"join_file.*lets others read it") as caught:
            load_agent_config(path, environ=home, uid=1000)
        assert str(secret) in str(caught.value)
        assert f"chmod 600 {secret}" in str(caught.value)
        assert "hidden" not in str(caught.value)
    secret.unlink()
    assert load_agent_config(path, environ=home, uid=1000).join_file == secret, "an enrolled agent needs it no more"
    with pytest.raises(ConfigError, match="No such file"):
        refuse_readable_by_others(tmp_path / "absent", "join_file")


def test_caps_say_what_the_core_says() -> None:
    core = CoreSettings()
    for name in set(Caps.__struct_fields__) - {"queued_per_tenant", "page_max", "message_max_bytes"}:
        assert getattr(core, name) == getattr(Caps(), name), name


def test_policy_numbers_say_what_the_core_says(tmp_path: Path, home: dict[str, str]) -> None:
    config = load_scheduler_config(environ=home, uid=1000)
    assert core_settings(config) == CoreSettings(lease_ttl_ms=config.lease_ttl_s * 1000)
    text = (
        "load_weight = 1\nfair_share_half_life_s = '1d'\nmin_run_s = '10m'\nbackfill_depth = 0\n"
        "gang_port_range = '40000-40009'\n"
        "starvation_after_s = '2h'\npower_idle_s = '15m'\npower_down_command = ['/sbin/off', '--node={node}']\n"
        "power_up_command = ['/sbin/wake', '{node}']\npower_keep_nodes = 1\npower_wake_timeout_s = '5m'\n"
    )
    said = load_scheduler_config(written(tmp_path, text), environ=home, uid=1000)
    core = core_settings(said)
    assert (core.load_weight, core.fair_share_half_life_ms, core.min_run_ms) == (1.0, 86_400_000, 600_000)
    assert list(core.gang_ports) == list(range(40_000, 40_010))
    assert (core.backfill_depth, core.starvation_after_ms) == (0, 7_200_000)
    assert (core.power_idle_ms, core.power_keep_nodes, core.power_wake_timeout_ms) == (900_000, 1, 300_000)
    assert said.power_down_command == ("/sbin/off", "--node={node}")
    environ = {**home, "GPUSHARE_SCHEDULER_LOAD_WEIGHT": "0.25"}
    assert load_scheduler_config(environ=environ, uid=1000).load_weight == 0.25


def test_a_policy_is_weighed_by_the_file_and_else_as_it_was_measured(tmp_path: Path, home: dict[str, str]) -> None:
    usual = load_scheduler_config(environ=home, uid=1000)
    assert msgspec.structs.asdict(usual.price_fit) == {
        "loads": (1.02, 1.1, 1.2, 1.3), "charge_steps": (0.0, 0.125, 0.25, 0.5, 1.0), "average_part": 0.8,
        "size_bonus_milli": 150.0, "wide_bonus_milli": 1000.0, "wide_part_min": 0.1, "window_tasks": 8192,
        "most_sizes": 24, "tolerance_milli": 10.0,
    }  # fmt: skip
    assert msgspec.structs.asdict(usual.fgd) == {"window_tasks": 8192, "most_classes": 256}
    text = "placement_policy = 'fgd'\n[price_fit]\nloads = [1.5, 2]\nwide_part_min = 0\n[fgd]\nwindow_tasks = 512\n"
    environ = {**home, "GPUSHARE_SCHEDULER_PRICE_FIT_CHARGE_STEPS": "0,0.5"}
    core = core_settings(load_scheduler_config(written(tmp_path, text), environ=environ, uid=1000))
    price_fit, fgd = (make_policy(name, core.weights) for name in ("price_fit", "fgd"))
    assert isinstance(price_fit, PriceFit)
    assert isinstance(fgd, Fgd)
    assert price_fit.weights == PriceFitWeights(loads=(1.5, 2.0), charge_steps=(0.0, 0.5), wide_part_min=0.0)
    assert fgd.weights == FgdWeights(window_tasks=512)


def test_the_policies_that_can_be_set_are_those_that_there_are() -> None:
    named = get_args(get_type_hints(SchedulerConfig)["placement_policy"])
    assert sorted(named) == sorted(POLICIES)


def test_configurations_are_frozen(home: dict[str, str]) -> None:
    config = load_scheduler_config(environ=home, uid=1000)
    with pytest.raises(AttributeError):
        config.listen = "0.0.0.0:1"  # type: ignore[misc]
    assert msgspec.structs.replace(config, listen="127.0.0.1:1").listen == "127.0.0.1:1"
