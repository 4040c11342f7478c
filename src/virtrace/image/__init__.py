"""A program as it is: its modules, memory, threads, registers and stacks."""
