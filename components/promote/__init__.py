"""Registers models and decides which one becomes champion: the `promote` stage."""
