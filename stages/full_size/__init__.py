"""Count the networks of the paper at full size, unpruned and pruned to the printed cost; no data, no training.

Random weights and random inputs: the numbers say what can be reached, and nothing about accuracy.
"""
