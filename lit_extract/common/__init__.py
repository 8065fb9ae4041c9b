"""Helpers that do not depend on stimuli or models: errors, reading untrusted files, signals, timing."""
