"""Who asked too often is answered late, one by one, and costs nobody else's memory."""

from __future__ import annotations

import pytest

from gpushare.ratelimit import Turns


def test_answers_to_one_key_leave_one_by_one_and_others_do_not_wait_for_them() -> None:
    turns = Turns(least_s=0.1, apart_s=0.01, most_s=0.15)
    waits = [turns.wait_s("flood", 5.0) for _ in range(8)]
    assert waits == pytest.approx([0.1, 0.11, 0.12, 0.13, 0.14, 0.15, 0.15, 0.15])
    assert turns.wait_s("other", 5.0) == pytest.approx(0.1)
    # Later, nothing of it is left.
    assert turns.wait_s("flood", 6.0) == pytest.approx(0.1)


def test_only_so_many_keys_are_remembered() -> None:
    turns = Turns(least_s=0.0, apart_s=1.0, most_s=9.0, keys_max=2)
    for key in ("a", "b", "c"):
        turns.wait_s(key, 0.0)
    assert turns.wait_s("c", 0.0) == 1.0
    assert turns.wait_s("a", 0.0) == 0.0
