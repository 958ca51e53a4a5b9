"""The train room of the pipeline; see the modules."""
