"""One look at a program, without stopping it: what each thread waits for, and on whom."""
