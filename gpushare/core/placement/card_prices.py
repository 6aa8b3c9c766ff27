"""What a piece of a card is worth to a job mix: prices from the dual of the packing problem of one card.

May import numpy. Pure arithmetic on sizes, supplies and values; knows nothing of fleets or requests. Sizes are
thousandths of a card; prices too: 1000 is the worth of a whole card.

The problem: fill cards with shares of given sizes, each size in limited supply, so that most of the cards is in use.

    maximise  sum_p worth(p) x_p    over fillings p of one card, worth(p) = sum of its sizes
    where     sum_p count(p, s) x_p <= supply_s    and    sum_p x_p <= 1

Its dual gives each size a rent (what one more such task would bring); size minus rent is the price of the piece that
such a task needs. Fillings are made as they are needed (Gilmore and Gomory 1961), each by a knapsack at these prices.
"""

from __future__ import annotations

import numpy as np

from gpushare.core.model import WHOLE_CARD_MILLI
from gpushare.core.placement.policy import FloatArray, IntArray

# Bounds the work where rounding would let the method run in circles; a stop here only makes prices a little worse.
MOST_STEPS = 400
_EPSILON = 1e-7


def best_fillings(sizes: IntArray, values: FloatArray, top_milli: int) -> FloatArray:
    """Row l, column r: the most that a piece of r thousandths (0 to `top_milli`) can earn from tasks of `sizes`, each
    as often as it fits, at `values[l]`."""
    best = np.zeros((len(values), top_milli + 1))
    for column, size in enumerate(sizes.tolist()):
        value = values[:, column : column + 1]
        if not (value > 0).any():
            continue
        # 1, 2, 4, ... at once: together they make every count.
        while size <= top_milli:
            np.maximum(best[:, size:], best[:, : top_milli + 1 - size] + value, out=best[:, size:])
            size, value = 2 * size, 2 * value
    return best


def piece_prices(sizes: IntArray, supply: FloatArray) -> FloatArray:
    """The price of the piece that a task of each size needs, on a scale where a whole card is worth 1000. `supply`:
    tasks of each size per card, more in all than cards can hold. Sizes are 1 to 1000, different and ascending."""
    count = len(sizes)
    worth = sizes.astype(np.float64)
    # The last row is the card itself. A trace of extra supply, different in each row, keeps the steps from stalling.
    amounts = np.append(supply, 1.0) + 1e-9 * np.arange(1, count + 2)
    inverse = np.eye(count + 1)
    basis_worth = np.zeros(count + 1)
    for _ in range(MOST_STEPS):
        duals = basis_worth @ inverse
        lowest = int(duals.argmin())
        if duals[lowest] < -_EPSILON:
            column, value = np.zeros(count + 1), 0.0
            column[lowest] = 1.0
        else:
            prices = worth - duals[:count]
            counts, earned = _fill(sizes, prices)
            if earned <= duals[count] + _EPSILON * WHOLE_CARD_MILLI:
                break
            column, value = np.append(counts, 1.0), float(counts @ worth)
        step = inverse @ column
        rising = step > 1e-9
        if not rising.any():
            break
        ratios = np.where(rising, amounts / np.where(rising, step, 1.0), np.inf)
        leaving = int(ratios.argmin())
        amounts = amounts - ratios[leaving] * step
        amounts[leaving] = ratios[leaving]
        row = inverse[leaving] / step[leaving]
        inverse = inverse - np.outer(step, row)
        inverse[leaving] = row
        basis_worth[leaving] = value
    duals = basis_worth @ inverse
    card = max(float(duals[count]), 1.0)
    return np.maximum(worth - duals[:count], 0.0) * (WHOLE_CARD_MILLI / card)


def _fill(sizes: IntArray, prices: FloatArray) -> tuple[FloatArray, float]:
    """The best filling of one card at these prices: how many of each size, and what it earns."""
    best = best_fillings(sizes, prices[None, :], WHOLE_CARD_MILLI)[0]
    counts = np.zeros(len(sizes))
    left = WHOLE_CARD_MILLI
    while True:
        # What is not needed stays empty.
        left = int(np.searchsorted(best[: left + 1], best[left] - _EPSILON))
        if left == 0:
            return counts, float(best[WHOLE_CARD_MILLI])
        before = np.where(sizes <= left, best[np.maximum(left - sizes, 0)] + prices, -np.inf)
        size = int(before.argmax())
        counts[size] += 1
        left -= int(sizes[size])
