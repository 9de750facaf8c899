"""A classifier of good against raw text, trained here, and what shows whether to believe it."""
