"""Exit codes of the command line; the last is what a shell says of tools that SIGPIPE ended."""

DONE, INFEASIBLE, BAD_INPUT, RUN_FAILED, INTERRUPTED, READER_GONE = 0, 1, 2, 3, 130, 141
