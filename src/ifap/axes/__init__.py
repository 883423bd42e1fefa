"""What belongs together in a network: axes are traced through one forward, then cut."""
