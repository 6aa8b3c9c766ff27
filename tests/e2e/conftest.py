"""The fixtures of the end-to-end tests, from the modules that make them."""

from upcluster import make_up, up_cluster
from world_fixture import world

__all__ = ["make_up", "up_cluster", "world"]
