"""Tracking in MLflow, the model registry, the object store for large files, and the execution of one stage."""
