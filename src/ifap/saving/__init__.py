"""Save a pruned network, load it, and rebuild it from its plan; also plans of older versions."""
