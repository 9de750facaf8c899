"""A run that dies at a chosen optimizer step, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from chatloom.training.trainer import Trainer


class Crash(Exception):
    """Stands for the death of the process: nothing catches it, nothing is cleaned up."""


@contextmanager
def crashing(monkeypatch: pytest.MonkeyPatch, updates: int) -> Iterator[None]:
    """The run dies when it begins its next optimizer step after `updates` of them."""
    done = 0
    update = Trainer.update

    def counted(self: Trainer, *args: Any) -> dict[str, float]:
        nonlocal done
        if done == updates:
            raise Crash
        done += 1
        return update(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", counted)
        with pytest.raises(Crash):
            yield
