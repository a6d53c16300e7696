"""Placements that others are compared with."""
