"""Where a task goes: `scores` say where it fits and how well by a policy, `place` takes the best, `filters` why not.

Arrays (numpy) live in this package and nowhere else. One policy a file; `POLICIES` maps a policy's name to what makes
one, and a policy with weights takes them by keyword.
"""

from __future__ import annotations

from collections.abc import Callable

from gpushare.core.placement.best_fit import BestFit
from gpushare.core.placement.consolidate import Consolidate
from gpushare.core.placement.fgd import Fgd
from gpushare.core.placement.policy import Policy
from gpushare.core.placement.price_fit import PriceFit
from gpushare.core.placement.spread import Spread

# The default first.
POLICIES: dict[str, Callable[..., Policy]] = {
    PriceFit.name: PriceFit,
    Fgd.name: Fgd,
    BestFit.name: BestFit,
    Consolidate.name: Consolidate,
    Spread.name: Spread,
}
