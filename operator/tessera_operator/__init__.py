"""The Kubernetes operator's package. It holds no code yet; the README's status table says so."""
