"""The ``virtrace`` command, one module per subcommand."""
