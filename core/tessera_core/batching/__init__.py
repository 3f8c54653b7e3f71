"""Batching: which queued work forms the next batch. One policy, used by dispatcher, simulator and planner."""
