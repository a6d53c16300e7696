"""The least largest load: splits of orders, ideals, column generation, local search."""
