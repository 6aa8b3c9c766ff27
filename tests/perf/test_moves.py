"""What makes the first launch on a quiet node quick changes nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpushare_agent import cgroupfs, cgroups


@pytest.mark.skipif(not Path("/sys/fs/cgroup").is_dir(), reason="this host has no control groups")
def test_stirring_moves_us_nowhere() -> None:
    before = cgroupfs.memberships()
    if "" not in before:
        pytest.skip("no cgroup v2 hierarchy holds this process")
    cgroups.stir(cgroups.own_group())
    assert cgroupfs.memberships() == before


def test_a_group_that_cannot_be_joined_is_no_error(tmp_path: Path) -> None:
    before = cgroupfs.memberships()
    cgroups.stir(str(tmp_path / "absent"))
    assert cgroupfs.memberships() == before
