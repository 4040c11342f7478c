"""What a person reads: units, colour, text. Formatters yield lines; they print nothing."""
