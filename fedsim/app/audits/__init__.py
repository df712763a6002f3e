"""Audits of a run: attacks, canaries, lower bounds. They look at a run and never start one."""
