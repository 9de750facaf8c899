"""HTML -> text, in a process that can be killed."""
