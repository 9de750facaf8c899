"""chatloom: from raw web pages to an aligned chat model."""

__version__ = "0.1.0"
