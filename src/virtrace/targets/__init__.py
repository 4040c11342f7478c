"""What is particular to a traced program, one package each."""
