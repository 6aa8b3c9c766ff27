"""What every test shares. Lying here, it puts `tests/` on the import path, so that `standins` can be imported."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """A run under `nohup` ignores hang-ups, and so would the clients whose terminal a test takes away."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
