"""One model on one dataset: its provenance, its run, its progress and its files."""
