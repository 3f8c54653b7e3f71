"""The API kinds of group tessera.dev/v1alpha1 as frozen dataclasses, decoded from and encoded to plain dicts."""
