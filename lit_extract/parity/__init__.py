"""Compute the same features in an independent way."""
