"""Discrete-event simulation of the queues that the planner reasons about."""
