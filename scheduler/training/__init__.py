"""Training steps: gradients that add up, and pipelines of layers."""
