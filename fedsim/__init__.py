"""A privacy-preserving federated learning simulator that is also deployable, on Flower."""

__version__ = "0.1.0"
