"""The report of a run: one self-contained HTML page, and the same results as a table in the terminal.

Everything is computed from the documents that the stages left in MLflow. Nothing here trains, attacks or needs torch.
"""
