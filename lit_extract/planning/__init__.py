"""What a job will need of disk, device and host, estimated before it runs.

Which rows a run computes together, and in which order, is ``data/plan.py``.
"""
