"""The production core on a trace: read, run under a virtual clock, measure, check.

Imports the core and the standard library; no clock of the machine decides anything here. Imported by the command line's
`simulate`, by tests and by benchmarks alone.
"""
