"""Seconds of an operator on a device: models, and how they are fitted."""
