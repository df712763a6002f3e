"""The server: the rounds of a run and what surrounds them."""
