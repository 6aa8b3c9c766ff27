"""The pure core: events and commands in, events and effects out.

Imports msgspec and the standard library's data modules; never a clock, socket, thread, log or random source.
"""
