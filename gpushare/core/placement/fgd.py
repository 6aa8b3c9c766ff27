"""Fragmentation gradient descent: put a task where it adds least to the GPU that the job mix cannot use. May import
numpy.

Source: Weng, Yang, Yu, Wang, Tang, Yang, Zhang: "Beware of Fragmentation: Scheduling GPU-Sharing Workloads with
Fragmentation Gradient Descent", USENIX ATC 2023. The fragmentation of a node for a class of tasks is all its free GPU
where such a task does not fit (cards, CPU), else the pieces that are smaller than what the task takes of a card; for a
mix it is the mean by popularity. A place is scored by how much the task adds to it (negative: takes away).

As in the authors' program the gain is put through a sigmoid (in cards) and rounded down to 0..100, so that places that
are about as good are ties; those go by the fleet's node order. GPU memory and host memory are not in the measure. The
popularity of classes is not given beforehand but learned from submissions.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gpushare.core.model import WHOLE_CARD_MILLI, TaskRequest
from gpushare.core.placement.mix import JobClass, JobMix
from gpushare.core.placement.pieces import Pieces, nodes_of, pieces_on
from gpushare.core.placement.policy import BoolArray, FloatArray, IntArray, Need, PlaceIndex
from gpushare.weights import FgdWeights

if TYPE_CHECKING:
    from gpushare.core.placement.fleet import Fleet

_STEPS = 100


class Typical(NamedTuple):
    """The mix as arrays. `popularity[c, k]` of class c, in its column: one for each size of a single card (`sizes`,
    ascending), then one for each count of whole cards (`counts`). `fits[m, c]`: it takes model m, `model_of` a node's
    number. `smaller[r]`: how many sizes a piece of r thousandths holds."""

    sizes: IntArray
    counts: list[int]
    cpu_milli: IntArray
    popularity: FloatArray
    fits: BoolArray
    fits_all: bool
    smaller: IntArray
    model_of: IntArray


class Fgd:
    """See the module."""

    name = "fgd"

    def __init__(self, weights: FgdWeights | None = None) -> None:
        self.weights = weights or FgdWeights()
        self._mix = JobMix(self.weights.window_tasks)
        self._epoch = 0
        self._usable_mib = 0
        self._classes: list[JobClass] = []
        self._made: tuple[weakref.ref[Fleet], int, int] | None = None
        self._typical: Typical | None = None

    def learn(self, request: TaskRequest, tasks: int) -> None:
        self._mix.learn(request, tasks)

    def epoch(self) -> int:
        if self._mix.is_due and self._usable_mib:
            self._classes = self._mix.read(self._usable_mib)
            self._epoch += 1
        return self._epoch

    def index(self, fleet: Fleet) -> PlaceIndex | None:
        return None

    def share_scores(self, fleet: Fleet, need: Need, cards: IntArray) -> FloatArray:
        typical = self._typical_for(fleet)
        nodes, row, column = nodes_of(fleet, cards)
        pieces, cpu = pieces_on(fleet, nodes), fleet.free_cpu_milli[nodes]
        before = _held(typical, nodes, cpu).usable(pieces).sum(axis=1)
        # Where the CPU that goes with a share depends on the card, the first of the node's cards speaks for all.
        cpu_need = need.cpu_milli if isinstance(need.cpu_milli, int) else need.cpu_milli[_firsts(row)]
        held = _held(typical, nodes, cpu - cpu_need)
        after = held.usable(pieces)
        milli = pieces.milli[row, column]
        left = np.maximum(milli - need.milli, 0)
        usable = after[:, :-1].sum(axis=1)[row] - after[row, column] + left * held.single[row, held.rows(left)]
        usable += held.wide(pieces.empty.sum(axis=1)[row] - pieces.empty[row, column], row)
        return _score(need.milli - before[row] + usable)

    def node_scores(self, fleet: Fleet, need: Need, nodes: IntArray) -> FloatArray:
        typical = self._typical_for(fleet)
        pieces, cpu = pieces_on(fleet, nodes), fleet.free_cpu_milli[nodes]
        before = _held(typical, nodes, cpu).usable(pieces).sum(axis=1)
        taken = pieces.empty & (pieces.empty.cumsum(axis=1) <= need.gpus)
        left = Pieces(np.where(taken, 0, pieces.milli), pieces.empty & ~taken)
        after = _held(typical, nodes, cpu - need.cpu_milli).usable(left).sum(axis=1)
        return _score(WHOLE_CARD_MILLI * need.gpus - before + after)

    def _typical_for(self, fleet: Fleet) -> Typical:
        made = self._made
        if self._typical is None or made is None or made[0]() is not fleet or made[1:] != (fleet.layout, self._epoch):
            self._usable_mib = int(np.median(fleet.usable_mib)) if len(fleet.uuids) else 1
            if self._mix.is_due:
                self._classes = self._mix.read(self._usable_mib)
                self._epoch += 1
            self._made = (weakref.ref(fleet), fleet.layout, self._epoch)
            self._typical = _typical(self._classes, fleet, self.weights.most_classes)
        return self._typical


def _score(gain_milli: FloatArray) -> FloatArray:
    """`gain_milli`: by how much fragmentation falls. Lower is better."""
    score: FloatArray = -np.floor(_STEPS / (1.0 + np.exp(-gain_milli / WHOLE_CARD_MILLI)))
    return score


class Held(NamedTuple):
    """Popularity of the classes that some nodes (rows) have the CPU and the model for: `single[:, k]` of those that ask
    for one of the k smallest sizes of a card, `several[:, k]` of those that ask for the k-th count of whole cards."""

    typical: Typical
    single: FloatArray
    several: FloatArray

    def rows(self, milli: IntArray) -> IntArray:
        smaller = self.typical.smaller
        return smaller[np.minimum(milli, len(smaller) - 1)]

    def wide(self, empty: IntArray, row: IntArray | slice = slice(None)) -> FloatArray:
        """What classes of several cards can use of nodes with so many empty cards."""
        usable = np.zeros(len(empty))
        for place, gpus in enumerate(self.typical.counts):
            usable += self.several[row, place] * np.where(empty >= gpus, empty * WHOLE_CARD_MILLI, 0)
        return usable

    def usable(self, pieces: Pieces) -> FloatArray:
        """Free GPU that is no fragment, thousandths, the mean over the mix: one column a card for single cards, the
        last for several."""
        single = pieces.milli * np.take_along_axis(self.single, self.rows(pieces.milli), axis=1)
        return np.concatenate((single, self.wide(pieces.empty.sum(axis=1))[:, None]), axis=1)


def _held(typical: Typical, nodes: IntArray, free_cpu_milli: IntArray) -> Held:
    fits = typical.cpu_milli <= free_cpu_milli[:, None]
    if not typical.fits_all:
        fits &= typical.fits[typical.model_of[nodes]]
    popular = fits.astype(np.float64) @ typical.popularity
    sizes = len(typical.sizes)
    single = np.zeros((len(nodes), sizes + 1))
    np.cumsum(popular[:, :sizes], axis=1, out=single[:, 1:])
    return Held(typical, single, popular[:, sizes:])


def _firsts(row: IntArray) -> BoolArray:
    """Where a new row begins."""
    firsts = np.ones(len(row), np.bool_)
    np.not_equal(row[1:], row[:-1], out=firsts[1:])
    return firsts


def _typical(classes: list[JobClass], fleet: Fleet, most: int) -> Typical:
    total = sum(c.weight for c in classes)
    with_cards = sorted((c for c in classes if c.gpus), key=lambda c: (-c.weight, c))[:most]
    sizes = sorted({c.milli for c in with_cards if c.gpus == 1})
    counts = sorted({c.gpus for c in with_cards if c.gpus > 1})
    popularity = np.zeros((len(with_cards), len(sizes) + len(counts)))
    for place, c in enumerate(with_cards):
        column = sizes.index(c.milli) if c.gpus == 1 else len(sizes) + counts.index(c.gpus)
        popularity[place, column] = c.weight / total
    names = sorted({kind.model for kind in fleet.kinds}) or [""]
    fits = np.array([[not c.models or name in c.models for c in with_cards] for name in names], dtype=np.bool_)
    model_of_kind = np.array([names.index(kind.model) for kind in fleet.kinds], dtype=np.int64)
    model_of = np.zeros(len(fleet.names), dtype=np.int64)
    if len(fleet.uuids):
        model_of[fleet.node_of] = model_of_kind[fleet.kind_of]
    return Typical(
        sizes=np.array(sizes, dtype=np.int64),
        counts=counts,
        cpu_milli=np.array([c.cpu_milli for c in with_cards], dtype=np.int64),
        popularity=popularity,
        fits=fits,
        fits_all=bool(fits.all()),
        smaller=np.searchsorted(np.array(sizes, dtype=np.int64), np.arange(WHOLE_CARD_MILLI + 1), side="right"),
        model_of=model_of,
    )
