"""Using a model: load a run, generate, chat."""
