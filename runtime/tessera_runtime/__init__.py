"""The per-node runtime: agent, supervisor, dispatcher, workers, and the front ends they serve through."""
