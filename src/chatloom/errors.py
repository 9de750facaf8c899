"""Errors a user is meant to read: what was found, what was expected, where, and what to do."""

from __future__ import annotations


class ChatloomError(Exception):
    """Base of every error that a user can cause and mend; the command line prints it without a traceback."""
