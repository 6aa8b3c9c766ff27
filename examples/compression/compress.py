"""Make a model small: train it, cut its smallest weights away, train what is left, and keep it in 8 bits.

Needs numpy. Ends with 1 when it lost more accuracy, or less size, than the caller allows.
"""

import argparse

import numpy as np

CLASSES, INPUTS, HIDDEN = 6, 20, 96
Layers = list[np.ndarray]


def samples(draw: np.random.Generator, centres: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Points around one centre a class, with a column of ones for the bias."""
    label = draw.integers(0, CLASSES, count)
    return np.hstack([centres[label] + draw.normal(0, 1.1, (count, INPUTS)), np.ones((count, 1))]), label


def forward(layers: Layers, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    hidden = np.maximum(inputs @ layers[0], 0)
    return hidden, hidden @ layers[1]


def accuracy(layers: Layers, inputs: np.ndarray, label: np.ndarray) -> float:
    return float((forward(layers, inputs)[1].argmax(axis=1) == label).mean())


def fit(layers: Layers, masks: Layers, inputs: np.ndarray, label: np.ndarray, steps: int) -> Layers:
    """Gradient descent on the cross entropy; what a mask has cut stays cut."""
    first, second = layers
    wanted = np.eye(CLASSES)[label]
    for _ in range(steps):
        hidden, scores = forward([first, second], inputs)
        chance = np.exp(scores - scores.max(axis=1, keepdims=True))
        error = (chance / chance.sum(axis=1, keepdims=True) - wanted) / len(label)
        back = (error @ second.T) * (hidden > 0)
        first, second = first - 0.5 * (inputs.T @ back) * masks[0], second - 0.5 * (hidden.T @ error) * masks[1]
    return [first, second]


def pruned(layers: Layers, part: float) -> Layers:
    """Masks that keep the largest weights of each layer; `part` of them go."""
    return [(np.abs(layer) >= np.quantile(np.abs(layer), part)).astype(float) for layer in layers]


def quantised(layers: Layers) -> list[tuple[np.ndarray, float]]:
    """Each layer as whole numbers from -127 to 127, and what one of them is worth."""
    found = []
    for layer in layers:
        scale = float(np.abs(layer).max()) / 127
        found.append((np.round(layer / scale).astype(np.int8), scale))
    return found


def sparse_bytes(layers: list[tuple[np.ndarray, float]]) -> int:
    """What the weights that are left take: a byte each, two bytes for its column, four for each row, four for the
    scale."""
    return sum(3 * int(np.count_nonzero(whole)) + 4 * whole.shape[0] + 4 for whole, _ in layers)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cut", type=float, default=0.8, help="part of the weights to cut away")
    parser.add_argument("--min-ratio", type=float, default=5.0, help="so many times smaller, or fail")
    parser.add_argument("--max-loss", type=float, default=0.02, help="accuracy that may be lost, or fail")
    given = parser.parse_args()

    draw = np.random.default_rng(3)
    centres = draw.normal(0, 1, (CLASSES, INPUTS))
    (inputs, label), (unseen, truth) = samples(draw, centres, 2000), samples(draw, centres, 2000)
    layers = [draw.normal(0, 0.2, (INPUTS + 1, HIDDEN)), draw.normal(0, 0.2, (HIDDEN, CLASSES))]

    whole = fit(layers, [np.ones_like(layer) for layer in layers], inputs, label, 200)
    before, dense_bytes = accuracy(whole, unseen, truth), 4 * sum(layer.size for layer in whole)
    print(f"trained:   {dense_bytes:6d} bytes, accuracy {before:.3f}", flush=True)

    masks = pruned(whole, given.cut)
    cut = fit([layer * mask for layer, mask in zip(whole, masks, strict=True)], masks, inputs, label, 200)
    print(f"pruned:    {given.cut:.0%} of its weights gone, accuracy {accuracy(cut, unseen, truth):.3f}", flush=True)

    small = quantised(cut)
    after = accuracy([numbers * scale for numbers, scale in small], unseen, truth)
    ratio = dense_bytes / sparse_bytes(small)
    print(f"quantised: {sparse_bytes(small):6d} bytes, accuracy {after:.3f}, {ratio:.1f} times smaller")
    if ratio < given.min_ratio or before - after > given.max_loss:
        print(f"not good enough: wanted {given.min_ratio} times smaller and at most {given.max_loss} lost")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
