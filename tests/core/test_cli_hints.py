"""The note to a person whose script asks for a card that the job will not see: a table of texts."""

from __future__ import annotations

import pytest

from gpushare.cli.hints import card_hint

ASKS = [
    (b"model.to('cuda:3')", 1, "cuda:3"),
    ("--device=cuda:1", 1, "cuda:1"),
    (b'torch.device("cuda:2")', 2, "cuda:2"),
    (b"export CUDA_VISIBLE_DEVICES=3\npython t.py", 1, "CUDA_VISIBLE_DEVICES=3"),
    ("CUDA_VISIBLE_DEVICES=0,1 python t.py", 1, "CUDA_VISIBLE_DEVICES=0,1"),
    (b"os.environ['CUDA_VISIBLE_DEVICES'] = '4'", 1, "CUDA_VISIBLE_DEVICES=4"),
    (b'os.environ.setdefault("CUDA_VISIBLE_DEVICES", "2")', 2, "CUDA_VISIBLE_DEVICES=2"),
    (b"\xff\xfe cuda:5 in no UTF-8", 1, "cuda:5"),
]
QUIET = [
    (b"model.to('cuda:0')", 1),
    (b"model.to('cuda:3')", 4),
    (b"model.to('cuda:3')", 0),
    (b"CUDA_VISIBLE_DEVICES=0,1", 2),
    (b"CUDA_VISIBLE_DEVICES=$MINE", 1),
    (b"mycuda:3 and cuda:12.4-base and cuda:1.x", 1),
    (b"nvidia/cuda:12:3", 1),
    (b"\x7fELF\0\0cuda:3", 1),
    (b" " * (64 << 10) + b"cuda:3", 1),
    ("", 1),
]


@pytest.mark.parametrize(("text", "cards", "asked"), ASKS)
def test_what_is_out_of_reach_is_named_with_what_the_job_sees(text: bytes | str, cards: int, asked: str) -> None:
    hint = card_hint(["first", text], cards)
    assert hint.startswith(f"{asked} is asked for, but this job sees ")
    assert ("one card, as cuda:0" if cards == 1 else f"cuda:0 to cuda:{cards - 1}") in hint


@pytest.mark.parametrize(("text", "cards"), QUIET)
def test_what_the_job_has_or_no_program_can_mean_is_left_alone(text: bytes | str, cards: int) -> None:
    assert card_hint([text], cards) == ""
