"""Promises of freezing: what a pattern names and nothing else, and a pattern that names nothing is refused."""

from __future__ import annotations

import pytest
from small_adapters import make

from chatloom.errors import ChatloomError
from chatloom.model.adapters.freezing import freeze
from chatloom.model.heads import RewardModel

UNTIED = {"tie_embeddings": False, "qkv_bias": True, "output_bias": True}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["embeddings"], lambda name: name == "embedding.weight"),
        (["unembedding"], lambda name: name == "output_embedding.weight"),
        (["norms"], lambda name: "norm" in name),
        (["biases"], lambda name: name.endswith("bias")),
        (["layers.0-1"], lambda name: name.startswith(("layers.0.", "layers.1."))),
        (["layers.2", "embeddings"], lambda name: name.startswith(("layers.2.", "embedding."))),
        (["attention"], lambda name: ".attention." in name),
        (["feedforward"], lambda name: ".feedforward." in name),
        (["layers.*.attention.qkv.weight"], lambda name: name.endswith("qkv.weight")),
    ],
)
def test_what_is_named_is_frozen_and_nothing_else(patterns: list[str], expected: object) -> None:
    model = make(UNTIED)
    names = freeze(model, patterns)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if expected(name)}  # type: ignore[operator]
    assert set(names) == frozen


def test_a_reward_models_names_are_those_of_its_body() -> None:
    model = RewardModel(make())
    freeze(model, ["layers.0-2", "embeddings"])
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"body.norm.weight", "score.weight"}


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (["embedings"], "`embedings` matches no weight"),
        (["norms", "layers.7"], "`layers.7`, but this model's layers are 0 to 2"),
        (["layers.0-5"], "layers are 0 to 2"),
        (["layers.2-1"], "layers are 0 to 2"),
        (["biases"], "`biases` matches no weight"),
        (["*"], r"\* leave no weight to train"),
        (["layers.0-2", "embeddings", "norms"], "leave no weight to train"),
    ],
)
def test_patterns_that_do_nothing_or_freeze_all_are_refused(patterns: list[str], said: str) -> None:
    model = make()
    with pytest.raises(ChatloomError, match=said):
        freeze(model, patterns)
    assert all(p.requires_grad for p in model.parameters())
