"""The compute graph: operators and tensors, its file, and graphs made of it."""
