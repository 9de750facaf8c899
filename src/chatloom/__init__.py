"""chatloom: from raw web pages to an aligned chat model. See `chatloom.api` for what the names below do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Model", "Reply", "__version__", "load", "load_chat", "run", "train"]

if TYPE_CHECKING:
    from chatloom.api import Model, Reply, load, load_chat, run, train


def __getattr__(name: str) -> Any:
    """The API's names, imported when first used, so that `chatloom --help` does not load torch."""
    if name in __all__:
        from chatloom import api

        return getattr(api, name)
    raise AttributeError(f"module 'chatloom' has no attribute {name!r}")
