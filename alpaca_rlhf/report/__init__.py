"""The pages a person reads: the report of a run and the report of a generation."""
