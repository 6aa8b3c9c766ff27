"""All benchmarks, one after the other, with one heading.

Run: python -m benchmarks.run [--out FILE]
"""

from __future__ import annotations

from benchmarks import drain, footprint, help, start, submit
from benchmarks.session import command

if __name__ == "__main__":
    command(__doc__, [submit.measure, start.measure, drain.measure, footprint.measure, help.measure])
