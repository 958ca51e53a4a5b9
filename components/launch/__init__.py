"""Starts the processes of a stage: children and a Ray cluster on this machine, a RayJob on Kubernetes."""
