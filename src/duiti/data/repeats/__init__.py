"""What is said more than once: duplicates, contradictions, leaks, and a split that heeds them."""
