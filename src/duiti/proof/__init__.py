"""The proof of what was saved: opened by a fresh process, and held against what was trained."""
