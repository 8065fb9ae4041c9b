"""The commands, one per file: arguments in, exit code out."""
