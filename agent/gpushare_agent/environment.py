"""The environment of a job: what its submitter asked for, and over it what only the agent may say.

Pure: imports the names' rules and the agent core's nouns. Invariant: whatever the order carries, the variables by
which a job is fenced and told who it is are the agent's own and are set last; hints to frameworks, and what tells a
task its rank in its gang, yield to the job's own choice, because they fence nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gpushare.names import is_reserved_env
from gpushare_agent.core import StartOrder
from gpushare_agent.launchspec import UnixUser

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# The first changes what indexes mean; more connections than two lower how many clients an MPS server takes.
_SCRUBBED = frozenset({"CUDA_DEVICE_ORDER", "CUDA_DEVICE_MAX_CONNECTIONS"})
_SCRUBBED_PREFIXES = ("NVIDIA_",)
# A CUDA context takes its part of the slice too, so a framework's pool must leave room for it.
CONTEXT_MIB = 512


def job_environment(
    order: StartOrder,
    *,
    node: str,
    user: UnixUser,
    card_total_mib: int,
    fence_env: Mapping[str, str],
    scratch: Path,
    sim_dir: Path | None,
    stop_notice: Path,
) -> dict[str, str]:
    """The whole environment of one task attempt.

    `card_total_mib` is the whole memory of the card that it shares, 0 without one; `fence_env` is what the tier wants
    in place; `scratch` is a directory of its own; `sim_dir` is where the user of a simulated card declares what it
    uses; in the file `stop_notice` the job finds that it will be stopped.
    """
    env = {"PATH": DEFAULT_PATH, **_hints(order, card_total_mib)}
    env.update((name, value) for name, value in order.env.items() if not _is_ours(name))
    env.update(HOME=user.home, USER=user.name, LOGNAME=user.name, SHELL=user.shell)
    env.update(_identity(order, node))
    for name, value in _ranks(order).items():
        env.setdefault(name, value)
    env["CUDA_VISIBLE_DEVICES"] = ",".join(order.gpu_uuids)
    env["GPUSHARE_SCRATCH"] = str(scratch)
    env["GPUSHARE_STOP_NOTICE"] = str(stop_notice)
    if sim_dir is not None:
        env["GPUSHARE_SIM_DIR"] = str(sim_dir)
    for name, value in fence_env.items():
        if _is_ours(name):
            env[name] = value
        else:
            env.setdefault(name, value)
    return env


def _is_ours(name: str) -> bool:
    return is_reserved_env(name) or name in _SCRUBBED or name.startswith(_SCRUBBED_PREFIXES)


def _identity(order: StartOrder, node: str) -> dict[str, str]:
    env = {
        "GPUSHARE_JOB_ID": order.job_id,
        "GPUSHARE_TASK_INDEX": str(order.task_index),
        "GPUSHARE_TASK_COUNT": str(order.task_count),
        "GPUSHARE_ATTEMPT": str(order.number),
        "GPUSHARE_NODE": node,
        "GPUSHARE_GPU_MILLI": str(order.gpu_milli),
        "GPUSHARE_GPU_MEMORY_MIB": str(order.gpu_memory_mib),
    }
    if order.array_index is not None:
        env["GPUSHARE_ARRAY_INDEX"] = str(order.array_index)
    return env


def _ranks(order: StartOrder) -> dict[str, str]:
    """What programs that `torchrun` starts expect, for a task of a gang: each task is one such program. Its cards are
    those that CUDA shows it, from 0, whatever its LOCAL_RANK is."""
    gang = order.gang
    if gang is None:
        return {}
    return {
        "MASTER_ADDR": gang.master_addr,
        "MASTER_PORT": str(gang.master_port),
        "RANK": str(gang.rank),
        "WORLD_SIZE": str(gang.world_size),
        "LOCAL_RANK": str(gang.local_rank),
        "LOCAL_WORLD_SIZE": str(gang.local_world_size),
        "NODE_RANK": str(gang.node_rank),
        "GROUP_RANK": str(gang.node_rank),
        "GROUP_WORLD_SIZE": str(gang.nodes),
    }


def _hints(order: StartOrder, card_total_mib: int) -> dict[str, str]:
    env = {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(max(1, order.cpu_milli // 1000))}
    if order.whole or not order.gpu_uuids or card_total_mib <= 0:
        return env
    slice_mib = min(order.gpu_memory_mib, card_total_mib)
    # Frameworks take their fraction of the whole card, whatever the limit is: most of them see no limit.
    pool_mib = max(slice_mib - CONTEXT_MIB, slice_mib // 2)
    env["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    env["XLA_PYTHON_CLIENT_MEM_FRACTION"] = _fraction(pool_mib, card_total_mib)
    env["GPUSHARE_GPU_MEMORY_FRACTION"] = _fraction(slice_mib, card_total_mib)
    return env


def _fraction(part_mib: int, whole_mib: int) -> str:
    """Rounded down to three places, so that the share is never passed."""
    milli = part_mib * 1000 // whole_mib
    return f"{milli // 1000}.{milli % 1000:03d}"
