"""Did it work: evaluate, metrics."""
