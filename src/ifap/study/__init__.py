"""The study of the paper: its grid, data, networks, rivals, training and report. The library never imports it."""
