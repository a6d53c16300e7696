"""Stages on several devices, which take micro-batches in turn."""
