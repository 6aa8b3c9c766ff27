"""What a launch may hold is on disk before it starts, and let go of even when the disk is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from gpushare_agent.core import Holding
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


def test_whatever_a_tenant_is_called_its_holdings_are_kept(tmp_path: Path):
    """Files that lie about to be written again have names that no attempt has."""
    held = Holding(attempt_id="spare-lab.12.0.1")
    HoldingBook(tmp_path).write(held)
    (tmp_path / "held" / ".spare-not-ours").touch()
    HoldingBook(tmp_path).write(Holding(attempt_id="vision.13.0.1"))
    assert HoldingBook(tmp_path).load()[held.attempt_id] == held


def test_what_was_let_go_of_is_written_again_across_restarts(tmp_path: Path):
    book = HoldingBook(tmp_path)
    for number in range(3):
        book.write(Holding(attempt_id=f"vision.{number}.0.1"))
    for number in range(2):
        book.drop(f"vision.{number}.0.1")
    again = HoldingBook(tmp_path)
    again.drop("vision.2.0.1")
    assert len(os.listdir(tmp_path / "held")) == 3
    for number in range(3, 6):
        again.write(Holding(attempt_id=f"vision.{number}.0.1"))
    assert len(os.listdir(tmp_path / "held")) == 3
    assert sorted(HoldingBook(tmp_path).load()) == [f"vision.{number}.0.1" for number in range(3, 6)]
