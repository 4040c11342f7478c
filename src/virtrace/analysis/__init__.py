"""What the events of a trace say together: call trees, QMP commands and their replies."""
