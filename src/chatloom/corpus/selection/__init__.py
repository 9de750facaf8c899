"""Decisions, taken last: expressions over labels, edits, and the funnel that counts what they took."""
