"""What knows nothing of stimuli and models: errors, reading untrusted files, signals, timing."""
