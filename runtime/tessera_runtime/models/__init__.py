"""Model files: fetched once, checked, kept by content."""
