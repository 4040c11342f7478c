"""Compare two traces: which calls belong together, and what differs between them."""
