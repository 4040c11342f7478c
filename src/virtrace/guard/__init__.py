"""What takes breakpoints out of a daemon when GDB no longer can."""
