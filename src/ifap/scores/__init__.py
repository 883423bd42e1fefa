"""Measure how much each unit matters: the paper's flow score, and scores measured at the outputs of the network."""
