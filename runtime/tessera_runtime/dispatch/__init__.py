"""The dispatcher: arenas, queues, batches, ensembles."""
