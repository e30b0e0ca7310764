"""Rows to samples: what the fields of a row mean."""
