"""The worked examples: their pages are true, and their results are what they claim."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from stage import ROOT, Stage

EXAMPLES = ROOT / "examples"


class Played:
    """An example whose page was run in a copy of its directory."""

    def __init__(self, stage: Stage, name: str, directory: Path) -> None:
        self.directory = directory / name
        shutil.copytree(EXAMPLES / name, self.directory, ignore=shutil.ignore_patterns("__pycache__"))
        self.typed = stage.run(self.directory / "README.md", self.directory)

    def outputs(self, beginning: str) -> list[str]:
        """What the commands that begin so have printed, in order."""
        return [each.output for each in self.typed if each.text.startswith(beginning)]


def test_each_example_has_a_test_here() -> None:
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.name for path in EXAMPLES.iterdir() if path.is_dir()} <= tests


@pytest.mark.timeout(300)
def test_data_parallel(stage: Stage, tmp_path: Path) -> None:
    """Four ranks, each with its own rows; the loss falls, and the result is that of one process."""
    played = Played(stage, "data_parallel", tmp_path)
    (log,) = played.outputs("gpushare logs train")
    blocks = re.findall(r"rank (\d) of 4 holds rows (\d+) to (\d+)", log)
    rows = [row for _, first, last in sorted(blocks) for row in range(int(first), int(last) + 1)]
    assert rows == list(range(4096)), "the blocks are the whole matrix, and no row twice"
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", log)]
    assert losses == sorted(losses, reverse=True)
    # What is left is the noise of the data: 0.1 squared.
    assert losses[0] > 1
    assert losses[-1] == pytest.approx(0.01, rel=0.1)
    assert "largest difference from one process alone: below 1e-9" in log


@pytest.mark.timeout(300)
def test_hyperparameters(stage: Stage, tmp_path: Path) -> None:
    """All trials ran once, and the job behind them chose the best of them all."""
    played = Played(stage, "hyperparameters", tmp_path)
    results = [json.loads(path.read_text()) for path in (played.directory / "results").glob("*.json")]
    assert sorted(result["index"] for result in results) == list(range(8))
    assert len({(result["rate"], result["width"]) for result in results}) == 8
    best = max(results, key=lambda result: (result["accuracy"], -result["index"]))
    assert best["accuracy"] > 0.95
    (log,) = played.outputs("gpushare logs best")
    assert log == f"best of 8: rate {best['rate']}, width {best['width']}, accuracy {best['accuracy']:.3f}\n"


@pytest.mark.timeout(300)
def test_compression(stage: Stage, tmp_path: Path) -> None:
    """Five times smaller, nearly as good; and it fails where more is asked than can be had."""
    played = Played(stage, "compression", tmp_path)
    good, bad = played.outputs("gpushare run")
    dense, before = figures(r"trained: +(\d+) bytes, accuracy ([\d.]+)", good)
    small, after, ratio = figures(r"quantised: +(\d+) bytes, accuracy ([\d.]+), ([\d.]+) times smaller", good)
    assert dense / small >= 5
    assert ratio == pytest.approx(dense / small, abs=0.1)
    assert before > 0.95
    assert before - after <= 0.02
    assert "not good enough" in bad
    assert "EXIT_CODE" in bad


@pytest.mark.timeout(300)
def test_pipeline(stage: Stage, tmp_path: Path) -> None:
    """Training has all shards, learns, and goes on where it was stopped."""
    played = Played(stage, "pipeline", tmp_path)
    assert len(list((played.directory / "shards").glob("[0-9]*.npz"))) == 4
    (log,) = played.outputs("gpushare logs train")
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+) on 4 shards", log)]
    assert len(losses) == 6
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(0.01, rel=0.1)
    (going_on,) = played.outputs("gpushare logs --attempt 2 long")
    (done,) = figures(r"going on after epoch (\d+)", going_on)
    assert 2 <= done < 60
    assert [int(epoch) for epoch in re.findall(r"epoch (\d+): loss", going_on)] == list(range(int(done) + 1, 61))
    assert json.loads((played.directory / "checkpoint.json").read_text())["epochs"] == 60


@pytest.mark.timeout(300)
def test_inference(stage: Stage, tmp_path: Path) -> None:
    """The half card answers about twice as many as each quarter, before and after it was replaced; nothing is lost."""
    played = Played(stage, "inference", tmp_path)
    for output in played.outputs("gpushare run --gpus 0"):
        answers = {int(job): int(count) for job, count in re.findall(r"worker (\d): \d+ \w+, (\d+) answers", output)}
        assert sum(answers.values()) == 400
        for quarter in (2, 3):
            assert 1.3 < answers[1] / answers[quarter] < 3, answers
    assert played.outputs("gpushare logs balance") == ["answered 600 of 600\n"]


def figures(pattern: str, text: str) -> tuple[float, ...]:
    found = re.search(pattern, text)
    assert found, text
    return tuple(float(group) for group in found.groups())
