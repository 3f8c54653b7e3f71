from tessera_core.perf.histogram import BOUNDS_S, RATIO, Histogram, percentile_s

__all__ = ["BOUNDS_S", "RATIO", "Histogram", "percentile_s"]
