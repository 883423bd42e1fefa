"""Pruning trained networks without training them: ours, controls and rivals on the same data, in one table."""
