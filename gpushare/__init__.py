"""gpushare: several tenants share the GPUs of ordinary Linux servers.

This package is what clients and the scheduler import; the node agent is `gpushare_agent`.
It re-exports nothing, so that importing any part of it stays cheap.
"""

__version__ = "0.1.0"
