"""What goes into a bug report: collected, redacted, searched for what must not leave, packed."""
