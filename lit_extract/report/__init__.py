"""A page about features."""
