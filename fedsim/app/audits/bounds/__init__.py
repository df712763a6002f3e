"""Lower bounds on epsilon."""
