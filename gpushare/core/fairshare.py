"""Whose turn it is: the measure by which tenants and users are ordered.

Pure. The measure is (decayed average + what is held now) / weight, in thousandths of a card: a tenant that holds r for
long comes to 2r. The average makes up for the past, the present holdings keep one pass from giving everything that is
free to whoever used least. Tenants below their guarantee come before all others. A tenant that has others below it
stands among these with its own jobs, as one of weight 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from gpushare.core import ledger
from gpushare.core.quota import QuotaTree
from gpushare.core.state import ClusterState


class Turn(NamedTuple):
    """Smallest first. `name` ends ties, so that the same state gives the same order."""

    beyond_guarantee: bool
    measure: float
    name: str


class FairShare:
    """The order of one pass: averages as of `now_ms`, holdings as the pass goes on (`tree` and `hold`)."""

    def __init__(self, state: ClusterState, tree: QuotaTree, now_ms: int) -> None:
        self._state, self._tree, self._now_ms = state, tree, now_ms
        self._average: dict[str, float] = dict.fromkeys(tree.branches, 0.0)
        self._own_average: dict[str, float] = {}
        for tenant in state.tenants.values():
            if not tenant.deleted:
                milli = ledger.average_milli(tenant.account, now_ms, state.half_life_ms)
                self._own_average[tenant.name] = milli
                for branch in tree.path(tenant.name):
                    self._average[branch.name] += milli
        self._users: dict[tuple[str, str], float] = {}
        self._wanted: Mapping[str, frozenset[str]] = {}

    def look_at(self, wanted: Mapping[str, frozenset[str]]) -> None:
        """By tenant the only models that anything waiting below it can use: a guarantee on others is no claim now."""
        self._wanted = wanted

    def turn(self, tenant: str) -> Turn:
        """Of the tenant with all below it."""
        branch = self._tree.branches[tenant]
        measure = (self._average[tenant] + branch.charge_milli) / branch.settings.weight
        return Turn(not branch.is_below_guarantee(self._wanted.get(tenant, ())), measure, tenant)

    def own_turn(self, tenant: str) -> Turn:
        """Of the tenant's own jobs among those of the tenants below it."""
        branch = self._tree.branches[tenant]
        measure = self._own_average[tenant] + branch.own_charge_milli
        return Turn(not branch.is_own_below_guarantee(), measure, tenant)

    def average_milli(self, tenant: str) -> float:
        """The decayed average of the tenant and all below it."""
        return self._average[tenant]

    def user_measure(self, tenant: str, user: str) -> float:
        key = (tenant, user)
        found = self._users.get(key)
        if found is None:
            person = self._state.tenants[tenant].people.get(user)
            found = 0.0
            if person is not None:
                found = ledger.average_milli(person.account, self._now_ms, self._state.half_life_ms)
                found += person.account.rate_milli
            self._users[key] = found
        return found

    def hold(self, tenant: str, user: str, charge_milli: int) -> None:
        """The pass gave this user so much more."""
        self._users[tenant, user] = self.user_measure(tenant, user) + charge_milli
