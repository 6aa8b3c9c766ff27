"""Puts the core tests' own modules (`cluster`, `scenario`) on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
