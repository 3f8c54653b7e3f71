"""Policies that keep a service within its SLO: what was set and what was seen since → what to set."""
