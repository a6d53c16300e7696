"""The least makespan: annealing, windows, and proofs by modules."""
