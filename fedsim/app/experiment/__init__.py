"""The federation of an experiment: loaded, planted, checked."""
