"""Starts GDB with ``virtrace.inferior`` inside."""
