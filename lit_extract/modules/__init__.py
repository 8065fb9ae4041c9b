"""LightningModules: a backbone with its weights, hooks on its layers, and pooling."""
