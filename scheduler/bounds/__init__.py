"""Lower bounds that need no trust in an algorithm."""
