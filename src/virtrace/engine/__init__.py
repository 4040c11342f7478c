"""What a stop means, whoever tells of it: captures, calls, answers. Needs no GDB."""
