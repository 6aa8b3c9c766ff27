"""How long `gpushare --help` takes, as a shell sees it: median of 20.

Run: python -m benchmarks.help
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from benchmarks import references
from benchmarks.figures import Figure, Reference, spread
from benchmarks.session import Session, command


def measure(session: Session) -> list[Figure]:
    script = Path(sys.executable).parent / "gpushare"
    bare = references.python_start_ms()
    samples = references.run_samples_ms([str(script), "--help"])
    note = spread(samples, "ms")
    beside = (Reference("python -c pass", bare),)
    return [Figure("help", "gpushare --help", statistics.median(samples), "ms", beside, note)]


if __name__ == "__main__":
    command(__doc__, [measure])
