"""Coverage: public networks, one after the other, pruned by half of their MACs and looked at closely."""
