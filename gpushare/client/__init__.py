"""The Python client: `gpushare.client.aio.AsyncClient`, and `gpushare.client.sync.Client` on top of it.

Re-exports nothing, so that a program pays only for what it imports.
"""
