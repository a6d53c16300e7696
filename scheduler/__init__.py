"""Graph, costs, placement problem, algorithms and plan."""
