"""The parts of `gpu_check.py`, first calls on a real card: standard library and pynvml alone, to run anywhere."""
