"""Derive from the events of a trace: call trees, exchanges, causes, differences."""
