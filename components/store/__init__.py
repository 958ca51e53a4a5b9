"""Where bytes and facts live: MLflow runs, the model registry, and the object store for large files."""
