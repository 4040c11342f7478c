"""What runs a plan on a daemon, one package each."""
