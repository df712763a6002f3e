"""Canaries that were planted: exposure and extraction."""
