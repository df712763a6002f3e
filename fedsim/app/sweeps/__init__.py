"""Many runs: grids, searches, workers, the trade-off table."""
