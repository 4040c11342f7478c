"""Tracing by uprobes: a resolved recipe as a bpftrace program, and a trace of what it printed."""
