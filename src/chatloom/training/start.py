"""What a pretraining run begins from: new weights or a model, that model's moments, and its new rows first."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from chatloom.errors import ChatloomError
from chatloom.model.extension import train_new_rows_only
from chatloom.model.transformer import Transformer
from chatloom.stage import Context
from chatloom.tokens.vocabulary import Vocabulary
from chatloom.training import checkpoints
from chatloom.training.bundle import Bundle, load_bundle
from chatloom.training.optimizers import ScheduledOptimizer

EXTENSION = "extension.json"  # what `extend-model` leaves beside a model


def beginning(context: Context, vocabulary: Vocabulary) -> Bundle:
    """A model of new weights or, where there is a `start`, that one."""
    start, settings = context.optional("start"), context.settings
    if start is None:
        generator = torch.Generator().manual_seed(context.seed)
        return Bundle(Transformer(settings.model.config(vocabulary.size), generator=generator), vocabulary, None)
    bundle = load_bundle(start.path)
    if bundle.vocabulary.sha256 != vocabulary.sha256:
        raise ChatloomError(
            f"stage `{context.name}`: {start.path} reads vocabulary {bundle.vocabulary.sha256[:12]}, the tokens are of "
            f"{vocabulary.sha256[:12]}; make them again with the model's vocabulary"
        )
    return bundle


def moments_of_start(context: Context, optimizer: ScheduledOptimizer) -> dict[str, Tensor]:
    """The state that the training of `start` left, for this optimizer.

    Raises ChatloomError when there is none, or when it is that of another optimizer or of other parameters.
    """
    start = context.optional("start")
    where = f"stage `{context.name}`: `start_moments`"
    if start is None:
        raise ChatloomError(f"{where} needs a `start`; give one or leave the setting out")
    if not (start.path / checkpoints.STATE / "values.json").is_file():
        raise ChatloomError(
            f"{where}: {start.path} has no {checkpoints.STATE}/ with an optimizer's moments; leave the setting out"
        )
    tensors = checkpoints.read_state(start.path).tensors.get("optimizer", {})
    missing = sorted(optimizer.state_names() - tensors.keys())
    if missing:
        raise ChatloomError(
            f"{where}: {start.path} was trained with another optimizer or other parameters ({missing[0]} is not in its "
            "state); use the same `optimizer.name` or leave the setting out"
        )
    return tensors


class NewRowsFirst:
    """In the first steps only the new rows learn: the other weights have no gradient, and nothing decays.

    What is trained follows from the step's number, so a run that goes on needs no memory of it.
    """

    def __init__(self, context: Context, model: Transformer, optimizer: ScheduledOptimizer) -> None:
        self._model, self._steps = model, context.settings.train_new_rows_first
        self._groups = optimizer.groups
        self._decays = [group["weight_decay"] for group in self._groups]
        self._undo: Callable[[], None] | None = None
        self._first = 0
        if self._steps:
            start = context.optional("start")
            file = start.path / EXTENSION if start is not None else None
            if file is None or not file.is_file():
                raise ChatloomError(
                    f"stage `{context.name}`: `train_new_rows_first` needs, as `start`, a model that stage "
                    f"`extend-model` made (with {EXTENSION}); give one or leave the setting out"
                )
            self._first = int(json.loads(file.read_text(encoding="utf-8"))["first_new_id"])

    def __call__(self, step: int) -> None:
        """Set what the optimizer step of this number (from 0) trains."""
        if step < self._steps and self._undo is None:
            self._undo = train_new_rows_only(self._model, self._first)
            self._set_decays([0.0] * len(self._groups))
        elif step >= self._steps and self._undo is not None:
            self._undo()
            self._undo = None
            self._set_decays(self._decays)

    @property
    def alone(self) -> bool:
        """Whether only the new rows learn now."""
        return self._undo is not None

    def _set_decays(self, decays: Sequence[float]) -> None:
        for group, decay in zip(self._groups, decays, strict=True):
            group["weight_decay"] = decay
