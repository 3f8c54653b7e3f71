"""The Kubernetes operator's package: leader election, and the cluster as facts. The README says what is missing."""
