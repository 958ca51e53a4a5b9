"""Starts the processes of a stage: a Ray cluster on this machine, or a RayJob on Kubernetes."""
