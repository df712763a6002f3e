"""Attacks and audits: scores first, statistics apart from them; all pure functions of arrays."""
