"""Puts the cluster of the end-to-end tests on the import path, and the stage of the pages among the fixtures."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "e2e"))

from stage import stage

__all__ = ["stage"]
