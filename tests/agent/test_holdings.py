"""What a launch may hold is on disk before it starts, and let go of even when the disk is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from gpushare_agent.holdings import HoldingBook


def test_a_full_disk_keeps_no_holding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    book = HoldingBook(tmp_path)
    held = tmp_path / "held" / "a-1-0-1.json"
    held.write_text("{}")

    def full(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", target)

    monkeypatch.setattr(os, "rename", full)
    book.drop("a-1-0-1")
    assert not held.exists()


def test_to_let_go_of_what_is_not_held_is_fine(tmp_path: Path):
    HoldingBook(tmp_path).drop("a-1-0-1")
    assert os.listdir(tmp_path / "held") == []
