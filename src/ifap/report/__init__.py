"""Write the page on one pruned network, with pictures and without a plotting library."""
