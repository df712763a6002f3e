"""What a run costs in privacy: planned before, spent so far, stated at the end."""
