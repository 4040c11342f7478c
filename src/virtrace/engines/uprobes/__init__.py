"""Traces by uprobes whose BPF programs virtrace makes and loads itself."""
