"""``lit-extract sweep``: every model of a kind, one process each. No torch here, so that it stays small."""
