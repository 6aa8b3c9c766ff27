"""Where a task goes: `scores` say where it fits and how well by a policy, `place` takes the best, `filters` why not.

Arrays (numpy) live in this package and nowhere else. One policy a file; `POLICIES` maps a policy's name to what makes
one, and `make_policy` gives it its weights.
"""

from __future__ import annotations

from collections.abc import Callable

from gpushare.core.placement.best_fit import BestFit
from gpushare.core.placement.consolidate import Consolidate
from gpushare.core.placement.fgd import Fgd
from gpushare.core.placement.policy import Policy
from gpushare.core.placement.price_fit import PriceFit
from gpushare.core.placement.spread import Spread
from gpushare.weights import PolicyWeights

# The default first.
POLICIES: dict[str, Callable[..., Policy]] = {
    PriceFit.name: PriceFit,
    Fgd.name: Fgd,
    BestFit.name: BestFit,
    Consolidate.name: Consolidate,
    Spread.name: Spread,
}


def make_policy(name: str, weights: PolicyWeights) -> Policy:
    """The policy of that name, with its own of the `weights` where it has some."""
    own = getattr(weights, name, None)
    return POLICIES[name]() if own is None else POLICIES[name](own)
