"""Promises of recomputation: the same gradients to the bit with less memory kept, for every kind of block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from toys import World

from chatloom.model.config import TransformerConfig
from chatloom.model.recompute import KEPT, How
from chatloom.model.transformer import Transformer
from chatloom.tokens.packing import Batch, Segment, pack
from chatloom.training.next_token_loss import NextTokenLoss

BLOCKS: dict[str, dict[str, Any]] = {
    "default": {},
    "dropout": {"dropout": 0.2, "attention_dropout": 0.1},
    "experts": {"n_experts": 4, "experts_per_token": 2},
    "layer norm": {"norm": "layer", "norm_place": "post", "feedforward": "gelu", "positions": "alibi"},
}


def model_of(**changes: Any) -> Transformer:
    config = TransformerConfig(
        vocab_size=64, hidden_size=32, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=8, intermediate_size=64,
        max_positions=64, **changes,
    )  # fmt: skip
    return Transformer(config, generator=torch.Generator().manual_seed(0)).train()


def batch_of(*lengths: int) -> Batch:
    draw = np.random.default_rng(0)
    return pack([Segment(draw.integers(0, 64, n), np.ones(n, dtype=np.float32)) for n in lengths], 64, 0)


def gradients(model: Transformer, batch: Batch, precision: torch.dtype | None = None) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(5)
    with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
        terms = NextTokenLoss(model)(batch)
    terms.total.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {**found, "loss": terms.total.detach()}


def kept_bytes(model: Transformer, batch: Batch) -> int:
    """Bytes of distinct tensors that a forward pass keeps for the backward pass, parameters not counted."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.over(batch)
    assert hidden.requires_grad
    return sum(sizes.values())


@pytest.mark.parametrize("how", ["block", "selective"])
@pytest.mark.parametrize("kind", BLOCKS)
def test_gradients_are_the_same_to_the_bit(kind: str, how: How) -> None:
    model, batch = model_of(**BLOCKS[kind]), batch_of(40, 20, 64, 9)
    plain = gradients(model, batch)
    model.recompute_blocks(how)
    again = gradients(model, batch)
    assert plain.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in plain.items())


@pytest.mark.parametrize("how", ["block", "selective"])
def test_gradients_are_the_same_in_bf16(how: How) -> None:
    model, batch = model_of(), batch_of(40, 20, 64)
    plain = gradients(model, batch, torch.bfloat16)
    model.recompute_blocks(how)
    again = gradients(model, batch, torch.bfloat16)
    assert all(torch.equal(value, again[name]) for name, value in plain.items())


def test_blocks_are_run_again_only_where_a_gradient_is_wanted() -> None:
    model, batch = model_of(), batch_of(30)
    calls = 0

    def counted(*_: Any) -> None:
        nonlocal calls
        calls += 1

    for block in model.layers:
        block.attention_norm.register_forward_hook(counted)
    model.recompute_blocks("block")
    with torch.no_grad():
        model.over(batch)
    assert calls == 3
    calls = 0
    gradients(model, batch)
    assert calls == 6


def test_a_block_keeps_its_input_alone() -> None:
    model, batch = model_of(), batch_of(64, 64, 64, 64)
    everything = kept_bytes(model, batch)
    model.recompute_blocks("block")
    little = kept_bytes(model, batch)
    assert little < everything / 4


class Products(TorchDispatchMode):
    """Counts matrix products and passes of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        self.n += operation in KEPT
        return operation(*arguments, **(named or {}))


def products(how: How) -> tuple[int, int]:
    """Of a forward and a backward pass."""
    model, batch = model_of(), batch_of(40, 20, 64)
    model.recompute_blocks(how)
    with Products() as forward:
        hidden = model.over(batch)
    with Products() as backward:
        hidden.sum().backward()
    return forward.n, backward.n


def test_selective_recomputation_repeats_no_product_and_that_of_blocks_all_but_their_last() -> None:
    (forward, backward), selective, block = products("none"), products("selective"), products("block")
    assert forward >= 3 * 5  # of each block: queries to values, output, two of the feed-forward layer, attention
    assert selective == (forward, backward)
    assert block == (forward, backward + forward - 3)  # the last product of a block: nobody wants its result again


@pytest.mark.parametrize("how", ["block", "selective"])
def test_a_stage_ends_in_the_same_bytes(how: str, world: World, tmp_path: Path) -> None:
    made = world.run("sft", tmp_path / how, epochs=1, loop={"recompute": how})
    plain = world.run("sft", tmp_path / "plain", epochs=1)
    assert made.manifest["files"]["model.safetensors"] == plain.manifest["files"]["model.safetensors"]
    assert made.fingerprint == plain.fingerprint
