"""Short trainings that answer a question before the run begins, and leave no trace in it."""
