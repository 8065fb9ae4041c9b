"""One command a file: arguments in, exit code out."""
