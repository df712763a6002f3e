"""A node: what it answers, its owner's terms, its ledger."""
