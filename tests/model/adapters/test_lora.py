"""Promises of LoRA: the formula on exactly the rows that are named, the same when merged, the bits when unmerged."""

from __future__ import annotations

import math

import pytest
import torch
from small_adapters import CONFIG, TOKENS, logits, make, segment, with_lora

from chatloom.errors import ChatloomError
from chatloom.generation.engine import generate
from chatloom.generation.sampling import Sampling
from chatloom.model.adapters.lora import LoraLinear, add_lora, lora_layers, merge, remove_lora, switch, unmerge
from chatloom.model.adapters.specs import Lora
from chatloom.model.adapters.targets import linear_layers
from chatloom.model.heads import RewardModel
from chatloom.tokens.packing import pack


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_a_fresh_adapter_changes_nothing_and_no_name() -> None:
    model, plain = make(), make()
    add_lora(model, Lora(targets=("all-linear",)))
    assert torch.equal(logits(model), logits(plain))
    names = dict(plain.named_parameters())
    assert {name for name, _ in model.named_parameters() if ".lora." not in name} == set(names)
    model.load_state_dict(plain.state_dict(), strict=False)


def test_a_is_kaiming_uniform_and_b_zero() -> None:
    model = make()
    add_lora(model, Lora(rank=16, targets=("down_proj",)), torch.Generator().manual_seed(0))
    a = torch.cat([layer.lora["down_proj"].A.detach() for _, layer in lora_layers(model)])
    bound = 1 / math.sqrt(CONFIG.intermediate_size)  # sqrt(6 / ((1 + 5) * in)), kaiming_uniform with a = sqrt(5)
    assert float(a.abs().max()) <= bound
    assert float(a.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert all(float(layer.lora["down_proj"].B.abs().max()) == 0.0 for _, layer in lora_layers(model))
    again = make()
    add_lora(again, Lora(rank=16, targets=("down_proj",)), torch.Generator().manual_seed(0))
    assert all(torch.equal(p, q) for p, q in zip(weights(model).values(), weights(again).values(), strict=True))


@pytest.mark.parametrize(("rslora", "scale"), [(False, 12 / 3), (True, 12 / math.sqrt(3))])
def test_the_formula_holds_on_the_named_rows_alone(rslora: bool, scale: float) -> None:
    model = with_lora(Lora(rank=3, alpha=12.0, rslora=rslora, targets=("q_proj", "v_proj")))
    layer = model.layers[1].attention.qkv
    assert isinstance(layer, LoraLinear)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    plain = x @ layer.weight.T
    q, v = layer.lora["q_proj"], layer.lora["v_proj"]
    expected = plain.clone()
    expected[..., :32] += scale * (x @ q.A.T @ q.B.T)
    expected[..., 48:] += scale * (x @ v.A.T @ v.B.T)
    torch.testing.assert_close(layer(x), expected)
    assert torch.equal(layer(x)[..., 32:48], torch.nn.functional.linear(x, layer.weight)[..., 32:48])  # keys


def test_every_linear_layer_of_the_folder_is_found_in_its_rows() -> None:
    model = make({"tie_embeddings": False})
    found = {item.name: item for item in linear_layers(model)}
    assert len(found) == 3 * 7 + 1
    assert (found["model.layers.2.self_attn.v_proj"].start, found["model.layers.2.self_attn.v_proj"].stop) == (48, 64)
    assert found["model.layers.0.mlp.up_proj"].module == "layers.0.feedforward.gate_up"
    assert (found["lm_head"].module, found["lm_head"].stop) == ("output_embedding", 90)


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("all-linear",), ("lm_head", "o_proj")], ids=" ".join)
def test_merging_keeps_the_logits_and_unmerging_the_bits(targets: tuple[str, ...]) -> None:
    model = with_lora(Lora(targets=targets), {"tie_embeddings": False})
    before, expected = weights(model), logits(model)
    merge(model)
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    torch.testing.assert_close(logits(model), expected, atol=2e-5, rtol=0)
    with pytest.raises(ChatloomError, match="merged already"):
        merge(model)
    with pytest.raises(ChatloomError, match="unmerge it before"):
        switch(model, False)
    unmerge(model)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert torch.equal(logits(model), expected)


def test_switched_off_it_is_its_base() -> None:
    model = with_lora(Lora(targets=("all-linear",)))
    switch(model, False)
    assert torch.equal(logits(model), logits(make()))
    switch(model, True)
    assert not torch.equal(logits(model), logits(make()))


def test_removed_it_is_its_base_or_the_merged_model() -> None:
    model = with_lora(Lora(targets=("all-linear",)))
    expected = logits(model)
    remove_lora(model)
    assert torch.equal(logits(model), logits(make()))
    assert weights(model).keys() == weights(make()).keys()
    model = with_lora(Lora(targets=("all-linear",)))
    merge(model)
    remove_lora(model)
    torch.testing.assert_close(logits(model), expected, atol=2e-5, rtol=0)


def test_gradients_are_those_of_the_merged_weights() -> None:
    """d loss / dA = scale B^T dW and d loss / dB = scale dW A^T, with dW of the matrix that the sum makes."""
    spec = Lora(rank=2, alpha=6.0, targets=("k_proj", "gate_proj", "lm_head"))
    model = with_lora(spec, {"tie_embeddings": False})
    model.logits(model(TOKENS)).log_softmax(-1)[..., 0].sum().backward()
    merged = with_lora(spec, {"tie_embeddings": False})
    merge(merged)
    merged.logits(merged(TOKENS)).log_softmax(-1)[..., 0].sum().backward()
    whole = dict(lora_layers(merged))
    for name, layer in lora_layers(model):
        for low in layer.lows:
            d_weight = whole[name].weight.grad[low.start : low.stop]
            torch.testing.assert_close(low.A.grad, 3.0 * low.B.detach().T @ d_weight, atol=2e-3, rtol=1e-3)
            torch.testing.assert_close(low.B.grad, 3.0 * d_weight @ low.A.detach().T, atol=2e-3, rtol=1e-3)


def test_dropout_is_on_its_input_in_training_alone() -> None:
    model = with_lora(Lora(dropout=0.5, targets=("o_proj",)))
    model.eval()
    without = with_lora(Lora(targets=("o_proj",)))
    assert torch.equal(logits(model), logits(without))
    model.train()
    layer = model.layers[0].attention.output
    x = torch.randn(2000, 32, generator=torch.Generator().manual_seed(0))
    base = torch.nn.functional.linear(x, layer.weight)
    torch.manual_seed(0)
    mean = sum(layer(x) - base for _ in range(50)) / 50
    low = layer.lora["o_proj"]
    full = 2.0 * x @ low.A.T @ low.B.T
    assert float((mean - full).square().mean() / full.square().mean()) < 0.05  # of unbiased noise 1 / 50 is left
    with pytest.raises(ChatloomError, match="lm_head with dropout"):
        add_lora(make({"tie_embeddings": False}), Lora(dropout=0.1, targets=("lm_head",)))


def test_packed_rows_and_the_generator_go_through_it() -> None:
    model = with_lora(Lora(targets=("all-linear",)))
    segments = [segment(TOKENS[i, : 6 + 4 * i]) for i in range(3)]
    batch = pack(segments, 40, 0)
    with torch.no_grad():
        hidden = model.over(batch)
        for i, item in enumerate(segments):
            alone = model(torch.from_numpy(item.tokens)[None])[0, -1]
            there = hidden[batch.segment_row[i], batch.segment_end[i]]
            torch.testing.assert_close(there, alone, atol=1e-5, rtol=1e-4)
    prompts = [TOKENS[0, :5].tolist(), TOKENS[1, :9].tolist()]
    found = generate(model, prompts, max_new_tokens=6, sampling=Sampling(temperature=0.0))
    merge(model)
    again = generate(model, prompts, max_new_tokens=6, sampling=Sampling(temperature=0.0))
    assert [s[0].tokens for s in found] == [s[0].tokens for s in again]


def test_a_reward_model_takes_it_too() -> None:
    reward = RewardModel(make(), generator=torch.Generator().manual_seed(1))
    add_lora(reward, Lora(targets=("all-linear",)))
    assert {name.split(".lora")[0] for name, _ in reward.named_parameters() if ".lora." in name} == {
        f"body.layers.{i}.{part}"
        for i in range(3)
        for part in ("attention.qkv", "attention.output", "feedforward.gate_up", "feedforward.down")
    }


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"rank": 0}, "rank 0"),
        ({"alpha": 0.0}, r"alpha 0\.0"),
        ({"dropout": 1.0}, r"dropout 1\.0"),
        ({"targets": ()}, "without targets"),
    ],
)
def test_sizes_without_meaning_are_refused(spec: dict[str, object], said: str) -> None:
    with pytest.raises(ChatloomError, match=said):
        Lora(**spec)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["block", "selective"])
def test_activations_that_are_made_again_are_the_same_with_dropout_too(how: str) -> None:
    def gradients(how: str) -> dict[str, torch.Tensor]:
        model = with_lora(Lora(targets=("all-linear",), dropout=0.4)).train()
        model.recompute_blocks(how)  # type: ignore[arg-type]
        for name, p in model.named_parameters():
            p.requires_grad_(".lora." in name)
        torch.manual_seed(5)
        model(TOKENS).square().sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    expected, found = gradients("none"), gradients(how)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_compiled_blocks_with_lora_are_one_graph() -> None:
    """Each block is the same code with other weights, adapted or not: what is compiled is compiled once."""
    import torch._dynamo

    model = with_lora(Lora(targets=("all-linear",)))
    expected = logits(model)
    graphs = 0

    def count(graph: torch.fx.GraphModule, _inputs: object) -> object:
        nonlocal graphs
        graphs += 1
        return graph.forward

    model._through = torch.compile(model._through, backend=count, fullgraph=True)
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-4)
    assert graphs == 1
    torch._dynamo.reset()
