"""Files to rows: sources, formats of files, compression, strict JSON, the user's filter."""
