"""Trace the axes of a network through one forward, group them into units and cut these."""
