"""The same features, computed in another way."""
