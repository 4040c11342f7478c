"""A recipe resolved on an image: the address of each probe, the place of each value. No gdb."""
