"""Scores that the study compares with the paper's beside those of the library; `ifap.study.rivals` adds them."""
