"""A person checks and fixes captions."""
