"""What a placement gives: its timeline, memory and value, and whether it keeps the rules."""
