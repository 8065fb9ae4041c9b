"""LightningModules, and the pure parts they are made of."""
