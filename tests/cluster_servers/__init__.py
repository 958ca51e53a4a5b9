"""Small HTTP servers that replace Kubernetes and Kubeflow in tests, so that the tests use the real clients."""
