"""Devices: MIG tables with their sources, geometry legality, device classes."""
