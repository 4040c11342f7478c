"""Facts of the host that a traced daemon runs on, collected outside of GDB."""
