"""Who is above and below whom among the tenants. Pure; tombstones have no place in the tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gpushare.core.model import Tenant

# A tree is never deeper; admission sees to that.
DEPTH_MAX = 8


def path(tenants: Mapping[str, Tenant], name: str) -> Iterator[str]:
    """`name` and every tenant above it, upwards. A name that is no tenant's has none."""
    for _ in range(DEPTH_MAX + 1):
        found = tenants.get(name)
        if found is None or found.deleted:
            return
        yield name
        name = found.settings.parent


def is_below(tenants: Mapping[str, Tenant], name: str, top: str) -> bool:
    """Whether `name` is `top` or anywhere below it."""
    return top in path(tenants, name)


def children(tenants: Mapping[str, Tenant], name: str) -> list[Tenant]:
    """The tenants right below `name`."""
    return [t for t in tenants.values() if t.settings.parent == name and not t.deleted]


def height(tenants: Mapping[str, Tenant], name: str) -> int:
    """Levels of the tree from `name` down: 1 where nothing is below it."""
    paths = (list(path(tenants, each)) for each in tenants)
    return max((steps.index(name) + 1 for steps in paths if name in steps), default=1)
