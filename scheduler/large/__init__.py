"""Graphs too large for a search: near linear in the operators."""
