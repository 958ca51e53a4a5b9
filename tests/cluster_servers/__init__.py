"""Small HTTP servers that stand in for Kubernetes and Kubeflow, so that the real clients are driven."""
