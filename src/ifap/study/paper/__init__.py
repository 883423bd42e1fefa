"""What the paper printed: its numbers, its names, and what does not agree among them."""
