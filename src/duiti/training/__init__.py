"""The loop: optim, step, log, and what a run leaves on disk."""
