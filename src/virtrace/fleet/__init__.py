"""Many hosts in one answer: what each file says, and which say something else than the others."""
