"""Tables I-V: from records to a model of each table, to text in four formats."""
