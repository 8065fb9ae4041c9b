"""Inspect folders and files: list their contents, and check that they are sound."""
