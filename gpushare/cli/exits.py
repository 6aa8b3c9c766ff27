"""The exit codes of the command line. Imports nothing."""

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
# `run` and `wait` return the job's code; a failure that is not the job's must be told apart.
EXIT_OWN_FAILURE = 125
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
