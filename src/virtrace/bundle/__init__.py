"""Makes a bundle for a bug report: collect, redact, search for private data, archive."""
