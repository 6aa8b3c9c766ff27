"""The control channel's own reading of what the MPS control program says."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gpushare_agent.sharing.mps_control import ControlError, MpsControl, is_percentage


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("100.0", True), ("12.5", True), ("0.0", True), ("4711", False), ("101.0", False), ("1.5G", False), ("", False)],
)
def test_what_is_taken_for_the_last_answer(text: str, is_one: bool) -> None:
    assert is_percentage(text) == is_one


def test_a_program_that_is_gone_is_named(tmp_path: Path) -> None:
    control = MpsControl(str(tmp_path / "none"), tmp_path, {})
    with pytest.raises(ControlError, match="cannot be run"):
        asyncio.run(control.ask("get_server_list"))
