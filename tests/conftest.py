"""What every test shares. Lying here, it puts `tests/` on the import path, so that `standins` can be imported."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

from gpushare.scheduler import engine


def pytest_configure() -> None:
    """A run under `nohup` ignores hang-ups, and so would the clients whose terminal a test takes away."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # So does what a shell starts in the background, with Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # How long an example takes says something of the machine and what else it does, nothing of the code.
    settings.register_profile("gpushare", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("gpushare")
    # A collection of all garbage at each start of a scheduler would walk pytest's own objects, millions of them.
    engine._spare_the_collector = lambda: None
