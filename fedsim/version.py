"""The version. Modules read it here, because `fedsim` itself lies above them all."""

__version__ = "0.1.0"
