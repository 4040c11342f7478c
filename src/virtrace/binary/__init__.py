"""What a file and /proc tell without GDB."""
