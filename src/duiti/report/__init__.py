"""The report of a run: one HTML file, and the sentence at its top."""
