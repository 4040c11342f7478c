"""The trace file: its records, written inside GDB and read anywhere."""
