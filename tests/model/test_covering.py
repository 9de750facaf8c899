"""Every pair of a decoder's choices is built and trained for a step, or is on the list of what makes no sense."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chatloom.errors import ChatloomError
from chatloom.generation.kv_cache import KVCache
from chatloom.model.combinations import COMBINATIONS
from chatloom.model.config import TransformerConfig
from chatloom.model.huggingface import load_model, save_model
from chatloom.model.rope_scaling import KINDS, RopeScaling
from chatloom.model.transformer import Transformer
from chatloom.tokens.packing import Batch, Segment, pack
from chatloom.training.next_token_loss import NextTokenLoss

BASE = TransformerConfig(
    vocab_size=30,
    hidden_size=16,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=4,
    intermediate_size=20,
    max_positions=16,
)
Choice = tuple[int, int]  # number of a factor, and of one of its values
FACTORS: list[list[dict[str, Any]]] = [
    [{"norm": "rms"}, {"norm": "layer"}, {"norm": "layer", "norm_bias": True}, {"norm_bias": True}],
    [{"norm_place": place} for place in ("pre", "post", "sandwich", "deep")],
    [{"qk_norm": False}, {"qk_norm": True}],
    [{"feedforward": kind} for kind in ("swiglu", "geglu", "gelu", "gelu_tanh", "relu2")],
    [{"feedforward_bias": False}, {"feedforward_bias": True}],
    [{"positions": kind} for kind in ("rope", "xpos", "learned", "sinusoidal", "t5", "alibi", "none")],
    [{"rope_scaling": None}, *({"rope_scaling": RopeScaling(kind, 2.0, original=8)} for kind in KINDS)],
    [{"n_kv_heads": 4}, {"n_kv_heads": 2}, {"n_kv_heads": 1}],
    [{"qkv_bias": False}, {"qkv_bias": True}],
    [{"output_bias": False}, {"output_bias": True}],
    [{"window": None}, {"window": 3}, {"window": 3, "full_every": 2}, {"full_every": 2}],
    [{"prefix_decoder": False}, {"prefix_decoder": True}],
    [{"tie_embeddings": True}, {"tie_embeddings": False}],
    [{"logit_softcap": None}, {"logit_softcap": 5.0}],
    [{"dropout": 0.0}, {"dropout": 0.2}],
    [{"attention_dropout": 0.0}, {"attention_dropout": 0.2}],
    [
        {"n_experts": 0},
        {"n_experts": 4},
        {"n_experts": 4, "experts_per_token": 1, "normalise_gates": False, "expert_capacity": 1.0},
    ],
]  # fmt: skip


def config_of(chosen: dict[int, int]) -> TransformerConfig:
    """The config of some choices, the others at their defaults; ChatloomError where it is refused."""
    values: dict[str, Any] = {}
    for factor, value in chosen.items():
        values |= FACTORS[factor][value]
    return replace(BASE, **values)


def accepted(chosen: dict[int, int]) -> bool:
    try:
        config_of(chosen)
    except ChatloomError:
        return False
    return True


def covering_array() -> tuple[list[dict[int, int]], list[tuple[Choice, Choice]]]:
    """Rows of choices that hold every pair that can be had, and the pairs that are refused with all else at default."""
    order = random.Random(0)
    refused: list[tuple[Choice, Choice]] = []
    left: set[tuple[Choice, Choice]] = set()
    for a, b in combinations(range(len(FACTORS)), 2):
        for i, j in product(range(len(FACTORS[a])), range(len(FACTORS[b]))):
            (left.add if accepted({a: i, b: j}) else refused.append)(((a, i), (b, j)))  # type: ignore[func-returns-value]
    rows: list[dict[int, int]] = []
    while left:
        first, second = min(left)
        row = dict((first, second))
        for factor in order.sample(range(len(FACTORS)), len(FACTORS)):
            if factor in row:
                continue
            values = [v for v in range(len(FACTORS[factor])) if accepted({**row, factor: v})]
            news = [sum(tuple(sorted(((factor, v), other))) in left for other in row.items()) for v in values]
            row[factor] = values[max(range(len(values)), key=lambda n: (news[n], order.random()))]
        left -= set(combinations(sorted(row.items()), 2))
        rows.append(row)
    return rows, refused


ROWS, REFUSED = covering_array()


def batch() -> Batch:
    generator = np.random.default_rng(0)
    segments = []
    for length in (9, 5, 12, 3):
        prefix = length // 3
        segments.append(Segment(generator.integers(0, 30, length), np.arange(length) >= prefix, prefix=prefix))
    return pack(segments, 16, 0)


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_every_pair_of_choices_trains_a_step(row: dict[int, int]) -> None:
    config = config_of(row)
    model = Transformer(config, generator=torch.Generator().manual_seed(0))
    assert config.n_parameters() == sum(p.numel() for p in model.parameters()), config
    loss, packed = NextTokenLoss(model), batch()

    def evaluated() -> float:
        model.eval()
        with torch.no_grad():
            return float(NextTokenLoss(model)(packed).total) / packed.total_weight

    before = evaluated()
    model.train()
    torch.manual_seed(0)
    loss.begin([packed], packed.total_weight)
    (loss(packed).total / packed.total_weight).backward()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            parameter.sub_(0.02 * parameter.grad)
    assert 0 < evaluated() < before, config


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_every_pair_of_choices_reads_a_text_alike_packed_alone_and_by_a_cache(row: dict[int, int]) -> None:
    model = Transformer(config_of(row), generator=torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # attention is far from even then
            parameter.mul_(4.0 if parameter.dim() > 1 else 1.0)
    packed = batch()
    with torch.inference_mode():
        together = model.over(packed)
        for number in range(packed.n_segments):
            line, start, end = (int(t[number]) for t in (packed.segment_row, packed.segment_start, packed.segment_end))
            text = packed.tokens[line : line + 1, start : end + 1]
            marks = None if packed.prefix is None else packed.prefix[line : line + 1, start : end + 1]
            prefix = marks if model.config.prefix_decoder else None
            alone = model(text, prefix=prefix)
            torch.testing.assert_close(together[line, start : end + 1], alone[0], atol=2e-4, rtol=1e-3)
            read = max(int(prefix.sum()), 1) if prefix is not None else 2
            cache = KVCache.empty(model.config, 1, text.shape[1])
            parts = [model(text[:, :read], cache=cache)]
            parts += [model(text[:, n : n + 1], cache=cache) for n in range(read, text.shape[1])]
            torch.testing.assert_close(torch.cat(parts, 1), alone, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_every_pair_of_choices_is_saved_and_comes_back(row: dict[int, int], tmp_path: Path) -> None:
    model = Transformer(config_of(row), generator=torch.Generator().manual_seed(0))
    save_model(tmp_path, model)
    again = load_model(tmp_path, "language")
    assert again.config == model.config
    for (name, a), b in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_all_that_is_refused_is_on_the_list_and_all_of_the_list_is_met() -> None:
    met = set()
    for first, second in REFUSED:
        with pytest.raises(ChatloomError) as caught:
            config_of(dict((first, second)))
        values = {**vars(BASE), **FACTORS[first[0]][first[1]], **FACTORS[second[0]][second[1]]}
        bare = object.__new__(TransformerConfig)
        bare.__dict__.update(values)
        names = [item.name for item in COMBINATIONS if item.found(bare) and item.message(bare) == str(caught.value)]
        assert len(names) == 1, caught.value
        met.update(names)
    alone = {  # those that sizes decide
        "heads that cannot share keys": {"n_kv_heads": 3},
        "an odd head that is turned": {"head_dim": 5},
        "an odd width for sines and cosines": {"hidden_size": 15, "positions": "sinusoidal"},
        "xPos further than its numbers reach": {"positions": "xpos", "max_positions": 30000},
        "a window that no layer has": {"window": 3, "full_every": 1},
        "dropout of everything": {"dropout": 1.0},
        "more experts a token than there are": {"n_experts": 1},
        "a capacity without experts": {"expert_capacity": 1.0},
        "one expert whose weight is always 1": {"n_experts": 4, "experts_per_token": 1},
    }
    for name, change in alone.items():
        item = next(item for item in COMBINATIONS if item.name == name)
        with pytest.raises(ChatloomError) as caught:
            replace(BASE, **change)
        assert item.words.split("{")[0] in str(caught.value), name
        met.add(name)
    assert met == {item.name for item in COMBINATIONS}
