"""One trial of a search: the array index picks the settings, the result goes to a file of its own.

Needs numpy. Run by `gpushare submit --array 0-7`; a trial that is run again writes the same file again.
"""

import itertools
import json
import os
from pathlib import Path

import numpy as np

RATES = (0.03, 0.1, 0.3, 1.0)
WIDTHS = (4, 16)
RESULTS = Path("results")


def points(draw: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Two rings of points, which no straight line can part."""
    label = draw.integers(0, 2, count)
    angle, radius = draw.uniform(0, 2 * np.pi, count), 1.0 + label + draw.normal(0, 0.2, count)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1), label


def accuracy_of(rate: float, width: int) -> float:
    """Of a net with one hidden layer, on points that it was not trained on."""
    draw = np.random.default_rng(7)
    (seen, label), (unseen, truth) = points(draw, 400), points(draw, 400)
    first, first_bias = draw.normal(0, 0.5, (2, width)), np.zeros(width)
    second, second_bias = draw.normal(0, 0.5, width), 0.0
    for _ in range(300):
        hidden = np.tanh(seen @ first + first_bias)
        error = (1 / (1 + np.exp(-(hidden @ second + second_bias))) - label) / len(label)
        back = np.outer(error, second) * (1 - hidden**2)
        second, second_bias = second - rate * hidden.T @ error, second_bias - rate * error.sum()
        first, first_bias = first - rate * seen.T @ back, first_bias - rate * back.sum(axis=0)
    guess = np.tanh(unseen @ first + first_bias) @ second + second_bias > 0
    return float((guess == truth).mean())


def main() -> None:
    index = int(os.environ["GPUSHARE_ARRAY_INDEX"])
    rate, width = list(itertools.product(RATES, WIDTHS))[index]
    result = {"index": index, "rate": rate, "width": width, "accuracy": accuracy_of(rate, width)}
    RESULTS.mkdir(exist_ok=True)
    partial = RESULTS / f".{index}.partial"
    partial.write_text(json.dumps(result))
    partial.rename(RESULTS / f"{index}.json")
    print(f"trial {index}: rate {rate}, width {width}: accuracy {result['accuracy']:.3f}")


if __name__ == "__main__":
    main()
