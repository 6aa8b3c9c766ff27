"""What the facts of a host mean: each case is a healthy host with one thing amiss, and all that is found of it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from gpushare.host.facts import HostFacts
from gpushare.host.findings import Level, findings

CARD = {"uuid": "GPU-1", "index": 0, "model": "NVIDIA H100", "compute_mode": "default", "mig_enabled": False}
HEALTHY: dict[str, Any] = {
    "root": True,
    "python": [3, 11],
    "driver": {"state": "OK", "version": "580.65.06", "cards": [CARD]},
    "params": {"RegistryDwords": "", "RmProfilingAdminOnly": "1"},
    "persistenced": True,
    "device_modes": {"/dev/nvidia0": 0o666, "/dev/nvidiactl": 0o666},
    "mps_control": "/usr/bin/nvidia-cuda-mps-control",
    "mps_server": "/usr/bin/nvidia-cuda-mps-server",
    "cgroups": {"v2": "/sys/fs/cgroup", "v2_controllers": ["memory", "pids", "cpu"], "can_kill": True, "tried": True},
    "users": {"ada": "uid 1001"},
    "clock": "synchronised",
    "systemd": True,
    "units": [{"name": "gpushare-agent.service", "active": True}],
    "hidepid": True,
    "disks": [{"path": "/var/lib", "free_mib": 90_000, "total_mib": 100_000}],
    "scheduler": {"address": "head:7480", "node": "gpu01", "ready": True},
}

# What is amiss (merged into the healthy host, one level deep) => CHECK LEVEL words of what mends it; more after `+`.
CASES = r"""
{"python": [3, 10]}                                            => python FAIL Python 3.11
{"python_closed": "/root"}                                     => python WARN PYTHON=/usr/bin/python3
{"python_closed": "/home/ada", "root": false}                  =>
{"config_trouble": ["agent.toml:3: nodes: no such key"]}       => config FAIL gpushare-agent --check
{"driver": {"state": "NO_LIBRARY", "detail": "no libnvidia"}}  => driver FAIL install the NVIDIA driver
{"driver": {"state": "NO_DRIVER", "detail": "not loaded"}}     => driver FAIL modprobe nvidia
{"driver": {"state": "MISMATCH", "detail": "upgraded"}}        => driver FAIL reboot
{"driver": {"state": "HUNG", "detail": "silent"}}              => driver FAIL dmesg
{"driver": {"cards": []}}                                      => driver FAIL nvidia-smi -L
{"driver": {"version": "525.60"}}                              => driver WARN upgrade + mps WARN 555
{"driver": {"version": "550.54"}}                              => mps WARN 555
{"driver": {"cards": [{"uuid": "GPU-1", "mig_enabled": true}]}}  => mig WARN nvidia-smi -i 0 -mig 0
{"driver": {"cards": [{"uuid": "GPU-1", "compute_mode": "prohibited"}]}} => compute mode WARN -i 0 -c DEFAULT
{"managed_gpus": ["GPU-1", "GPU-9"]}                           => managed_gpus FAIL nvidia-smi -L
{"params": {"RegistryDwords": "RMDisableScrubOnFree=1"}}       => scrub FAIL NVreg_RegistryDwords
{"params": {"RegistryDwords": "X=2;RmDisableScrubOnFree=0x1"}} => scrub FAIL NVreg_RegistryDwords
{"params": {"RegistryDwords": "RMDisableScrubOnFree=0x0"}}     =>
{"params": {"RmProfilingAdminOnly": "0"}}                      => profiling WARN NVreg_RestrictProfilingToAdminUsers
{"persistenced": false}                                        => persistence WARN nvidia-smi -pm 1
{"device_modes": {"/dev/nvidia0": 432}}                        => devices WARN chmod 0666 /dev/nvidia0
{"mps_server": ""}                                             => mps WARN compute-utils
{"cgroups": {"v2": ""}}                                        => cgroups FAIL unified_cgroup_hierarchy
{"cgroups": {"can_kill": false}}                               => cgroups FAIL 5.14
{"cgroups": {"v2_controllers": ["cpu", "pids"]}}               => cgroups FAIL cgroup_disable=memory
{"cgroups": {"v2_controllers": [], "v1_controllers": ["memory", "pids"]}} =>
{"cgroups": {"why_not": "Read-only file system"}}              => cgroups FAIL container
{"users": {"bob": "missing"}}                                  => user FAIL getent passwd bob
{"users": {"root": "root"}}                                    => user FAIL --unix-user
{"clock": "free"}                                              => clock WARN timedatectl set-ntp true
{"clock": ""}                                                  =>
{"foreign": ["slurmd"]}                                        => others WARN managed_gpus
{"foreign": ["slurmd"], "managed_gpus": ["GPU-1"]}             =>
{"units": []}                                                  => unit WARN gpushare-agent install
{"units": [], "systemd": false}                                =>
{"units": [{"name": "gpushare-agent.service", "active": false}]} => unit WARN systemctl enable --now gpushare-agent
{"units": [{"name": "a.service", "active": true, "warnings": ["it kills"]}]} => unit WARN systemctl restart
{"ports": [{"number": 7480, "owner": "gpushare-scheduler"}]}   =>
{"ports": [{"number": 7480, "owner": "nginx"}]}                => port WARN scheduler.toml
{"ports": [{"number": 7481}]}                                  => port WARN ss -ltnp
{"scheduler": {"trouble": "connection refused"}}               => scheduler FAIL firewall
{"scheduler": {"ready": false}}                                => node WARN journalctl
{"scheduler": {"clock_skew_ms": -90000}}                       => clock WARN timedatectl
{"scheduler": {"warnings": ["KillMode is wrong"]}}             => node WARN nodes -o wide
{"scheduler": {"node": "", "ready": false}}                    =>
{"hidepid": false}                                             => hidepid WARN hidepid=2
{"disks": [{"path": "/v", "free_mib": 100, "total_mib": 9000}]}  => disk FAIL du
{"disks": [{"path": "/v", "free_mib": 900, "total_mib": 9000}]}  => disk WARN log_keep_s
{"disks": [{"path": "/v", "free_mib": 2000, "total_mib": 90000}]} => disk WARN log_keep_s
"""


def _host(amiss: dict[str, Any]) -> HostFacts:
    merged = dict(HEALTHY)
    for key, value in amiss.items():
        deep = isinstance(value, dict) and key in ("driver", "params", "cgroups", "scheduler")
        merged[key] = {**merged[key], **value} if deep else value
    if merged["driver"]["state"] != "OK":
        merged["driver"] = {**merged["driver"], "cards": []}
    return msgspec.convert(merged, HostFacts)


def test_nothing_is_amiss_with_a_healthy_host() -> None:
    found = findings(_host({}))
    assert [each for each in found if each.level is not Level.OK] == []
    assert {"driver", "mps", "cgroups", "user", "clock", "unit", "port", "scheduler", "disk"} <= {
        f.check for f in found
    }


@pytest.mark.parametrize("case", CASES.strip().splitlines())
def test_what_is_amiss_is_found_and_nothing_else(case: str) -> None:
    amiss, _, expected = case.partition("=>")
    found = [each for each in findings(_host(json.loads(amiss))) if each.level is not Level.OK]
    wanted = [words.strip() for words in expected.split(" + ") if words.strip()]
    assert len(found) == len(wanted), found
    for finding, words in zip(found, wanted, strict=True):
        check, _, mend = words.partition(f" {finding.level} ")
        assert finding.check == check, finding
        assert mend, f"expected {words}, found {finding}"
        assert mend in finding.mend, finding


def test_a_host_of_which_nothing_is_known_accuses_only_the_driver_and_what_nobody_saw() -> None:
    assert {each.check for each in findings(HostFacts()) if each.level is Level.FAIL} == {"driver", "cgroups"}
