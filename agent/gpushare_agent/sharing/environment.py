"""What a fence puts into a job's environment, tier by tier. Pure: imports the port's words alone.

These names are set last, over whatever the submitter sent. A job that must not use MPS is pointed at a pipe
directory that cannot exist, since without the variable CUDA would join any daemon that somebody left at the
default place.
"""

from __future__ import annotations

from pathlib import Path

from gpushare_agent.sharing.port import SliceSpec

NO_MPS_DIRECTORY = "/nonexistent/gpushare-no-mps"


def visible(spec: SliceSpec) -> dict[str, str]:
    """The granted cards by UUID, and none else."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(spec.gpu_uuids), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def without_mps(spec: SliceSpec) -> dict[str, str]:
    """For tiers whose jobs talk to the card directly."""
    return visible(spec) | {"CUDA_MPS_PIPE_DIRECTORY": NO_MPS_DIRECTORY}


def through_mps(spec: SliceSpec, pipe: Path) -> dict[str, str]:
    """For a client of the card's own daemon, to which the card is device 0.

    The limit needs its `0=`: without it CUDA ignores the variable. The percentage takes decimals.
    """
    return visible(spec) | {
        "CUDA_MPS_PIPE_DIRECTORY": str(pipe),
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": percentage(spec.gpu_milli),
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": f"0={spec.gpu_memory_mib}M",
    }


def percentage(gpu_milli: int) -> str:
    """Thousandths as the percentage that MPS reads: 125 -> "12.5", 250 -> "25"."""
    return f"{gpu_milli / 10:g}"
