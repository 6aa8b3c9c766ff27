"""Stands in for PyTorch on machines that have none: as much of it as the page "The first PyTorch job" uses.

A linear layer, its squared error and the gradient of that, in numpy. On PYTHONPATH only where there is no torch.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

__version__ = "0.stand-in"


class Tensor:
    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.grad: np.ndarray | None = None

    def to(self, device: str) -> Tensor:
        assert device == "cpu", "this stand-in has no card"
        return self

    def sum(self, dim: int, keepdim: bool) -> Tensor:
        return Tensor(self.values.sum(axis=dim, keepdims=keepdim))


class Linear:
    def __init__(self, inputs: int, outputs: int) -> None:
        self.weight, self.bias = Tensor(_draw.normal(0, 0.1, (inputs, outputs))), Tensor(np.zeros(outputs))

    def to(self, device: str) -> Linear:
        self.weight.to(device)
        return self

    def __call__(self, inputs: Tensor) -> Output:
        return Output(self, inputs)

    def parameters(self) -> Iterator[Tensor]:
        return iter((self.weight, self.bias))

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight.values, "bias": self.bias.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weight.values, self.bias.values = state["weight"], state["bias"]


class Output:
    def __init__(self, layer: Linear, inputs: Tensor) -> None:
        self.layer, self.inputs = layer, inputs
        self.values = inputs.values @ layer.weight.values + layer.bias.values


class Loss:
    def __init__(self, output: Output, wanted: Tensor) -> None:
        self._output, self._error = output, output.values - wanted.values

    def item(self) -> float:
        return float((self._error**2).mean())

    def backward(self) -> None:
        slope = 2 * self._error / self._error.size
        self._output.layer.weight.grad = self._output.inputs.values.T @ slope
        self._output.layer.bias.grad = slope.sum(axis=0)


class Descent:
    def __init__(self, parameters: Iterator[Tensor], lr: float) -> None:
        self._parameters, self._rate = list(parameters), lr

    def zero_grad(self) -> None:
        for each in self._parameters:
            each.grad = None

    def step(self) -> None:
        for each in self._parameters:
            assert each.grad is not None
            each.values = each.values - self._rate * each.grad


_draw = np.random.default_rng(0)
cuda = SimpleNamespace(is_available=lambda: False)
nn = SimpleNamespace(Linear=Linear, functional=SimpleNamespace(mse_loss=Loss))
optim = SimpleNamespace(SGD=Descent)


def manual_seed(seed: int) -> None:
    global _draw
    _draw = np.random.default_rng(seed)


def randn(*shape: int) -> Tensor:
    return Tensor(_draw.standard_normal(shape))


def save(what: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(what))


def load(path: str | Path) -> Any:
    return pickle.loads(Path(path).read_bytes())  # noqa: S301 - its own file, in a test's directory
