"""Turns to ids and labels, through an exact fast path where the tokenizer allows it."""
