"""What would happen: replay of a plan, serving under traffic, cost, what-ifs, capacity."""
