"""Removes breakpoints from a daemon when GDB no longer can."""
