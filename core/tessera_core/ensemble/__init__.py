"""Ensembles: how the members' answers become one."""
