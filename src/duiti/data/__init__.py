"""From files to batches: read, formats, template, spans, encode, ledger, split, batch, preview."""
