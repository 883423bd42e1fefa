"""What the networks of the paper cost at full size, counted without training."""
