"""Engines: the libraries that run a model, behind one seam."""
