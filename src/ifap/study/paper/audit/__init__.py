"""Check the published numbers against one another and against the networks they name; nothing is trained.

A finding says which printed numbers do not follow from which, and shows the arithmetic. It does not
say why: a slip of the pen, rounding at an earlier stage and tables from different runs look alike.
"""
