"""The Kubernetes operator's package. It elects a leader so far; the README's status table says what is missing."""
