"""One process for each model."""
