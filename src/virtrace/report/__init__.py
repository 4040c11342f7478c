"""A trace made readable. Formatters yield lines; only the edge prints."""
