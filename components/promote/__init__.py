"""The promote room of the pipeline; see the modules."""
