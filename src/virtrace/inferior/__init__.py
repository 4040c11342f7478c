"""Inside GDB: the only package that imports ``gdb``."""
