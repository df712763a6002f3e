"""Attacks and audits, as pure functions of arrays; scores are separate from statistics."""
