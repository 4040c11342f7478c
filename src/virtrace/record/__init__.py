"""One recording: the traced command, the signals that end it, the live view."""
