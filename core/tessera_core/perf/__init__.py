"""Performance: measured latency profiles and the batch-queue model that predicts latency under load."""
