"""Exit codes of the command line."""

DONE, INFEASIBLE, BAD_INPUT, RUN_FAILED, INTERRUPTED = 0, 1, 2, 3, 130
