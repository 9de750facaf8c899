"""Runs pure functions over shards: on this machine's processes, as Ray tasks, as a Beam pipeline: all the same bytes.

A step is a list of tasks (`steps.py`); an engine only decides where a task runs. What is done is known by its receipt,
so that a step goes on after any kind of end, and its counts are exact.
"""
