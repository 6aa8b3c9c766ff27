"""Puts the core tests' own modules on the path, and the fixtures of the command line into reach."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from cli_calls import cluster, environment, gpushare

__all__ = ["cluster", "environment", "gpushare"]
