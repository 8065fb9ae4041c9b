"""The review of captions by a person."""
