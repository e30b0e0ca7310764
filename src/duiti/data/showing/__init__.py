"""Examples as a person sees them: in the terminal, and as a page."""
