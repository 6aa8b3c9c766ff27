"""Benchmarks: one command each (`python -m benchmarks.NAME`), all of them with `python -m benchmarks.run`."""
