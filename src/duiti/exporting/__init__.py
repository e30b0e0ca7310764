"""Trained weights in the shapes that others load: merge."""
