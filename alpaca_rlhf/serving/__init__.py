"""The policies and reward model of a run, loaded to answer, to score and to fill the queue."""
