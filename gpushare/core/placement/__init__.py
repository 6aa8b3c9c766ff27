"""Where a task goes: filters in `filters`, then the score of a policy, one file each.

A policy is a function from a candidate to a tuple; the smallest wins. Ties end in node and card names, so that the same
state always gives the same placement.
"""

from __future__ import annotations

from collections.abc import Callable

from gpushare.core.placement import best_fit
from gpushare.core.placement.candidate import Candidate

Policy = Callable[[Candidate], tuple[int, ...]]

POLICIES: dict[str, Policy] = {"best_fit": best_fit.score}
