"""Samples to turns: chat templates, rendered within limits, and what the model must produce."""
