"""A job's environment: the agent's word on fences and identity stands over whatever was submitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gpushare_agent.core import Gang, StartOrder
from gpushare_agent.environment import job_environment
from gpushare_agent.launchspec import UnixUser

ANN = UnixUser(1001, 1001, (1001,), "ann", "/home/ann", "/bin/zsh")


def order(**fields: Any) -> StartOrder:
    settings: dict[str, Any] = {
        "attempt_id": "vision.42_3.1.2",
        "term": 1,
        "job_id": "42_3",
        "task_index": 1,
        "task_count": 4,
        "array_index": 3,
        "number": 2,
        "unix_user": "ann",
        "argv": ("true",),
        "script": b"",
        "env": {},
        "working_directory": "/",
        "gpu_uuids": ("GPU-a",),
        "gpu_milli": 250,
        "gpu_memory_mib": 20_000,
        "cpu_milli": 4500,
        "tier": "timeslice",
    }
    return StartOrder(**{**settings, **fields})


def environment(wanted: StartOrder, **more: Any) -> dict[str, str]:
    settings: dict[str, Any] = {
        "node": "n1",
        "user": ANN,
        "card_total_mib": 81559,
        "fence_env": {},
        "sim_dir": None,
        "scratch": Path("/scratch/a"),
        "stop_notice": Path("/notices/vision.42.1.3/notice"),
    }
    return job_environment(wanted, **{**settings, **more})


def test_a_share_is_told_its_card_its_slice_and_who_it_is() -> None:
    env = environment(order())
    assert env["CUDA_VISIBLE_DEVICES"] == "GPU-a"
    assert {name: env[f"GPUSHARE_{name}"] for name in ("JOB_ID", "TASK_INDEX", "TASK_COUNT", "ARRAY_INDEX")} == {
        "JOB_ID": "42_3",
        "TASK_INDEX": "1",
        "TASK_COUNT": "4",
        "ARRAY_INDEX": "3",
    }
    assert (env["GPUSHARE_ATTEMPT"], env["GPUSHARE_NODE"]) == ("2", "n1")
    assert (env["GPUSHARE_GPU_MILLI"], env["GPUSHARE_GPU_MEMORY_MIB"]) == ("250", "20000")
    assert (env["HOME"], env["USER"], env["LOGNAME"], env["SHELL"]) == ("/home/ann", "ann", "ann", "/bin/zsh")
    assert (env["PYTHONUNBUFFERED"], env["OMP_NUM_THREADS"]) == ("1", "4")
    assert env["PATH"]


@pytest.mark.parametrize(
    "name",
    [
        "CUDA_VISIBLE_DEVICES",
        "CUDA_MPS_PIPE_DIRECTORY",
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT",
        "CUDA_DEVICE_MAX_CONNECTIONS",
        "NVIDIA_VISIBLE_DEVICES",
        "GPUSHARE_GPU_MEMORY_MIB",
        "GPUSHARE_ANYTHING",
        "HOME",
        "USER",
    ],
)
def test_nothing_that_fences_or_names_the_job_is_taken_from_the_submitter(name: str) -> None:
    env = environment(order(env={name: "mine", "A": "b"}))
    assert env.get(name) != "mine"
    assert env["A"] == "b"


def test_the_fence_has_the_last_word_on_its_own_variables_only() -> None:
    fence = {
        "CUDA_MPS_PIPE_DIRECTORY": "/run/mps",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": ".9",
    }
    env = environment(
        order(env={"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.1", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}), fence_env=fence
    )
    assert env["CUDA_MPS_PIPE_DIRECTORY"] == "/run/mps"
    assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert env["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.1"


def test_hints_yield_to_the_jobs_own_choice() -> None:
    env = environment(order(env={"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "", "PATH": "/opt/bin"}))
    assert (env["OMP_NUM_THREADS"], env["PYTHONUNBUFFERED"], env["PATH"]) == ("1", "", "/opt/bin")


def test_frameworks_are_told_a_fraction_that_leaves_room_for_their_context() -> None:
    env = environment(order())
    assert env["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"
    assert env["GPUSHARE_GPU_MEMORY_FRACTION"] == "0.245"
    pool_mib = float(env["XLA_PYTHON_CLIENT_MEM_FRACTION"]) * 81559
    assert 20_000 - 600 < pool_mib <= 20_000 - 512


def test_a_tiny_slice_still_gets_a_pool() -> None:
    env = environment(order(gpu_memory_mib=600))
    assert 0 < float(env["XLA_PYTHON_CLIENT_MEM_FRACTION"]) < float(env["GPUSHARE_GPU_MEMORY_FRACTION"])


def test_whole_cards_are_all_visible_and_get_no_caps() -> None:
    env = environment(order(gpu_uuids=("GPU-a", "GPU-b"), whole=True, gpu_milli=1000, tier="exclusive"))
    assert env["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in env
    assert "GPUSHARE_GPU_MEMORY_FRACTION" not in env


def test_a_cpu_job_sees_no_card_and_one_thread_at_least() -> None:
    env = environment(order(gpu_uuids=(), gpu_milli=0, gpu_memory_mib=0, cpu_milli=250, tier=""), card_total_mib=0)
    assert env["CUDA_VISIBLE_DEVICES"] == ""
    assert env["OMP_NUM_THREADS"] == "1"
    assert "GPUSHARE_SIM_DIR" not in env


def test_a_job_that_is_no_array_child_has_no_array_index() -> None:
    assert "GPUSHARE_ARRAY_INDEX" not in environment(order(array_index=None))


def test_on_simulated_cards_it_learns_where_to_say_what_it_uses() -> None:
    assert environment(order(), sim_dir=Path("/s/x"))["GPUSHARE_SIM_DIR"] == "/s/x"


GANG = Gang(
    master_addr="10.0.0.7",
    master_port=29_501,
    rank=5,
    world_size=16,
    local_rank=1,
    local_world_size=4,
    node_rank=1,
    nodes=4,
)
RANKS = {
    "MASTER_ADDR": "10.0.0.7",
    "MASTER_PORT": "29501",
    "RANK": "5",
    "WORLD_SIZE": "16",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "NODE_RANK": "1",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "4",
}


def test_a_task_of_a_gang_is_told_its_rank_and_where_the_gang_meets() -> None:
    env = environment(order(gang=GANG))
    assert {name: env[name] for name in RANKS} == RANKS


def test_a_rank_yields_to_the_jobs_own_choice() -> None:
    env = environment(order(gang=GANG, env={"MASTER_PORT": "1234", "A": "b"}))
    assert (env["MASTER_PORT"], env["RANK"], env["A"]) == ("1234", "5", "b")


def test_a_job_of_one_task_has_no_rank() -> None:
    assert not RANKS.keys() & environment(order()).keys()
