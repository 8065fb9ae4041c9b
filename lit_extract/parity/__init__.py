"""Some stimuli of a features file once more, by a way that shares nothing with what made it."""
