"""What to trace: the recipe's model, its YAML, the C paths it captures, the shipped ones."""
