"""What our engine is measured against: each in its own process, all on the same made-up data."""
