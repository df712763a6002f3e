"""Membership inference: the games, the attacks, what they see."""
