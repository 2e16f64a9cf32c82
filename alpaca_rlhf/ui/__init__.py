"""The terminal: where a run stands, ranking by people, chat."""
