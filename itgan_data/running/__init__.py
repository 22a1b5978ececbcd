"""Long work: checkpoints, time limits, logs, and the processes that share it."""
