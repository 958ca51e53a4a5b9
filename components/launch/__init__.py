"""Turns a stage into processes: here, forked from a warm host, or on Kubernetes as a RayJob."""
