"""Tracing by uprobes: a plan as a bpftrace program, and a trace of what it printed."""
