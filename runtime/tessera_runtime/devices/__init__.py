"""Device inventory: processor cores and NVIDIA GPUs."""
