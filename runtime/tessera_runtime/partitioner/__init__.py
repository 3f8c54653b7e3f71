"""Cuts GPUs into MIG instances: needs privilege, so it is apart from all that serves, and opens no port."""
