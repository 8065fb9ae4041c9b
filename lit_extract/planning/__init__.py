"""Estimate the disk space and memory that a job will need, before it runs.

The rows that a run computes together, and their order, are planned in ``data/plan.py``.
"""
