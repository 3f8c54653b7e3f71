"""Workers: processes that hold models and run batches in lanes."""
