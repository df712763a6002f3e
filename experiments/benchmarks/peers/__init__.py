"""What our engine is measured against, each in a process of its own, all on the same made-up data."""
