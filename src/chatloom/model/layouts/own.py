"""Folders of our own, for what no Hugging Face class computes: our names, our fields, `"hf": false`."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import torch

from chatloom.errors import ChatloomError
from chatloom.model.config import TransformerConfig
from chatloom.model.layouts.values import Layout, Piece, Values
from chatloom.model.rope_scaling import RopeScaling
from chatloom.model.transformer import Transformer

_KEY = "chatloom"


def _settings(config: TransformerConfig) -> dict[str, Any]:
    return {"hf": False, _KEY: asdict(config)}


def _fields(read: Values) -> dict[str, Any]:
    values = read.get(_KEY)
    known = {field.name for field in fields(TransformerConfig)}
    if not isinstance(values, dict):
        raise ChatloomError(f"{read.where}: has no object `{_KEY}` with the model's fields")
    if set(values) != known:
        odd = sorted(set(values) ^ known)[0]
        raise ChatloomError(
            f"{read.where}: {_KEY} {'has an unknown' if odd in values else 'lacks the'} field {odd}; the folder was "
            "written by another version of chatloom"
        )
    scaling = values["rope_scaling"]
    if scaling is not None:
        expected = {field.name for field in fields(RopeScaling)}
        if not isinstance(scaling, dict) or set(scaling) != expected:
            raise ChatloomError(f"{read.where}: {_KEY}.rope_scaling is {scaling!r}; expected {', '.join(expected)}")
        try:
            scaling = RopeScaling(**scaling)
        except ChatloomError as error:
            raise ChatloomError(f"{read.where}: {error}") from None
    return {**values, "rope_scaling": scaling}


def _pieces(config: TransformerConfig) -> dict[str, list[Piece]]:
    with torch.device("meta"):
        model = Transformer(config, initialise=False)
    return {name: [Piece(name, tuple(parameter.shape))] for name, parameter in model.named_parameters()}


OWN = Layout(
    "chatloom",
    {"language": "ChatloomForCausalLM", "reward": "ChatloomForSequenceClassification"},
    lambda _: True,
    _settings,
    _fields,
    _pieces,
)
