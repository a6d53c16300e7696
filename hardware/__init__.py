"""What a device can do, what a link carries and what both cost."""
