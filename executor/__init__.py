"""Everything that touches torch: capture, measuring devices, running a plan."""
