"""What a trace means: spans, and the QMP conversation."""
