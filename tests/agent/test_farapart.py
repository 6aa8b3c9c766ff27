"""The hint to the file system is given where there is such a hint, and is never in the way elsewhere."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from gpushare_agent.farapart import put_far_apart


def test_the_hint_is_set_beside_what_is_there_where_the_file_system_has_it(tmp_path: Path) -> None:
    kind = subprocess.run(["stat", "-f", "-c", "%T", tmp_path], check=True, capture_output=True, text=True)
    if kind.stdout.strip() != "ext2/ext3" or shutil.which("lsattr") is None:
        pytest.skip("no ext4 here, or no lsattr")
    subprocess.run(["chattr", "+d", tmp_path], check=True)
    for _ in range(2):
        put_far_apart(tmp_path)
    listed = subprocess.run(["lsattr", "-d", tmp_path], check=True, capture_output=True, text=True)
    flags = listed.stdout.split()[0]
    assert {"T", "d"} <= set(flags)


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_what_cannot_take_it_is_passed_over(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    put_far_apart(tmp_path / name)
    put_far_apart(Path("/proc"))
