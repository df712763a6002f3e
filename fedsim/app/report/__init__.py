"""Pages about runs, sweeps and data sets."""
