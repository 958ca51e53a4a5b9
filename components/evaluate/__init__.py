"""The evaluate room of the pipeline; see the modules."""
