"""GDB-scripted tracing toolkit for libvirt."""

__version__ = "0.2.0"
