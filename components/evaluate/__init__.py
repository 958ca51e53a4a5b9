"""Measures clean and robust accuracy: the `evaluate` and `sweep` stages."""
