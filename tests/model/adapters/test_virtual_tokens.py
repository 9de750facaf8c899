"""Promises of virtual tokens: every text sees them, whatever the packing, padding or cache."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from small_adapters import CONFIG, TOKENS, logits, make, prompted, segment

from chatloom.errors import ChatloomError
from chatloom.generation.engine import generate, stream
from chatloom.generation.kv_cache import KVCache
from chatloom.generation.sampling import Sampling
from chatloom.model.adapters.encoders import make_encoder
from chatloom.model.adapters.specs import Prefix, Prompt, PTuning, VirtualTokens
from chatloom.model.adapters.virtual_tokens import PromptedTransformer, split_prefix
from chatloom.tokens.packing import Segment, pack

KINDS: dict[str, VirtualTokens] = {
    "prefix": Prefix(5),
    "projected": Prefix(3, projection=True),
    "prompt": Prompt(4),
    "mlp": PTuning(4),
    "lstm": PTuning(2, network="lstm", hidden_size=5),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
def test_packing_and_padding_change_nothing(kind: str) -> None:
    model = prompted(KINDS[kind])
    segments = [segment(TOKENS[i, : 5 + 3 * i]) for i in range(3)]
    batch = pack(segments, 24, 0)
    assert batch.tokens.shape[0] < 3  # at least two share a row
    with torch.no_grad():
        hidden = model.over(batch)
        for i, item in enumerate(segments):
            alone = model(torch.from_numpy(item.tokens)[None])[0]
            start, end = int(batch.segment_start[i]), int(batch.segment_end[i])
            there = hidden[batch.segment_row[i], start : end + 1]
            torch.testing.assert_close(there, alone, atol=1e-5, rtol=1e-4)
    assert bool(hidden.isfinite().all())


@every_kind
def test_gradients_do_not_depend_on_packing(kind: str) -> None:
    segments = [segment(TOKENS[i, : 5 + 3 * i]) for i in range(3)]
    found = []
    for batches in ([pack(segments, 48, 0)], [pack([item], 48, 0) for item in segments]):
        model = prompted(KINDS[kind])
        model.requires_grad_(False)
        model.virtual.requires_grad_(True)
        for batch in batches:
            hidden = model.over(batch)[batch.segments >= 0]
            (model.logits(hidden).log_softmax(-1)[..., 7].sum()).backward()
        found.append([p.grad for p in model.virtual.parameters()])
        assert all(p.grad is None for name, p in model.named_parameters() if not name.startswith("virtual."))
    largest = max(float(g.abs().max()) for g in found[0])
    assert largest > 0
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5 * largest, rtol=1e-4)


@every_kind
def test_with_a_cache_it_computes_the_same(kind: str) -> None:
    model = prompted(KINDS[kind])
    padding = torch.tensor([4, 0, 9])
    shifted = torch.stack([row.roll(int(pad)) for row, pad in zip(TOKENS, padding, strict=True)])
    cache = KVCache.empty(CONFIG, 3, 20, padding=padding)
    with torch.inference_mode():
        blocks = [model(shifted[:, a:b], cache=cache) for a, b in ((0, 11), (11, 12), (12, 16), (16, 20))]
        together = torch.cat(blocks, dim=1)
        for row, pad in enumerate(padding.tolist()):
            alone = model(TOKENS[row : row + 1, : 20 - pad])[0]
            torch.testing.assert_close(together[row, pad:], alone, atol=2e-5, rtol=1e-4)


@every_kind
def test_the_generator_says_what_the_forward_pass_says(kind: str) -> None:
    model = prompted(KINDS[kind])
    prompts = [TOKENS[0, :5].tolist(), TOKENS[1, :9].tolist()]
    found = generate(model, prompts, max_new_tokens=8, sampling=Sampling(temperature=0.0))
    for prompt, [sample] in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt + sample.tokens])
        assert logits(model, ids)[0, len(prompt) - 1 : -1].argmax(-1).tolist() == sample.tokens
        greedy = stream(model, prompt, max_new_tokens=8, sampling=Sampling(temperature=0.0))
        assert list(greedy) == sample.tokens


def test_the_context_counts_real_tokens_alone() -> None:
    model = prompted(Prefix(7))
    whole = torch.randint(0, 90, (1, CONFIG.max_positions))
    assert model.config == CONFIG
    assert bool(logits(model, whole).isfinite().all())


def test_a_prompt_of_real_tokens_is_those_tokens_before_the_text() -> None:
    body = make()
    ids = torch.tensor([[5, 9, 11]])
    encoder = make_encoder(Prompt(3), CONFIG, body.embedding.weight)
    with torch.no_grad():
        encoder.embedding.weight.copy_(body.embedding.weight[ids[0]])
    model = PromptedTransformer(body, Prompt(3), encoder)
    expected = logits(body, torch.cat((ids.expand(3, -1), TOKENS), dim=1))[:, 3:]
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-4)


def test_a_prefix_is_keys_and_values_layer_by_layer() -> None:
    vectors = torch.arange(2 * 3 * 2 * 2 * 8, dtype=torch.float32).view(2, -1)  # tokens, layers, k and v, heads, dim
    made = split_prefix(vectors, 3, 2)
    assert len(made) == 3
    keys, values = made[1]
    assert keys.shape == (1, 2, 2, 8)  # one, heads, tokens, dim
    assert keys[0, 1, 0].tolist() == vectors[0, 32 + 8 : 32 + 16].tolist()
    assert values[0, 0, 1].tolist() == vectors[1, 48:56].tolist()


def test_a_prompt_starts_as_tokens_of_the_vocabulary_and_a_seed_draws_the_same() -> None:
    body = make()
    one, two = (
        make_encoder(Prompt(6), CONFIG, body.embedding.weight, torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(one.embedding.weight, two.embedding.weight)
    rows = body.embedding.weight
    assert all(bool((rows == vector).all(-1).any()) for vector in one.embedding.weight)
    state = torch.random.get_rng_state()
    make_encoder(PTuning(2, network="lstm"), CONFIG, body.embedding.weight, torch.Generator().manual_seed(3))
    assert torch.equal(torch.random.get_rng_state(), state)  # nobody else's numbers are used up


@every_kind
def test_what_is_kept_between_passes_is_made_anew_when_a_weight_changes(kind: str) -> None:
    model = prompted(KINDS[kind])
    first = logits(model)
    assert torch.equal(logits(model), first)
    optimizer = torch.optim.AdamW(model.virtual.parameters(), lr=0.1, fused=True)
    model.logits(model(TOKENS)).sum().backward()
    optimizer.step()
    second = logits(model)
    assert not torch.equal(second, first)
    optimizer.zero_grad()
    assert torch.equal(logits(model), second)
    with torch.no_grad():
        model.layers[0].attention.qkv.weight.mul_(1.1)
    fresh = copy.deepcopy(model)
    fresh._made = None
    assert torch.equal(logits(model), logits(fresh))
    assert not torch.equal(logits(model), second)


def test_segments_and_a_cache_together_are_refused() -> None:
    model = prompted(Prefix(2))
    with pytest.raises(ValueError, match="both given"):
        model(TOKENS, segments=torch.zeros_like(TOKENS), cache=KVCache.empty(CONFIG, 3, 20))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"positions": "learned"}, "positions: learned"),
        ({"positions": "alibi"}, "positions: alibi"),
        ({"positions": "t5"}, "positions: t5"),
        ({"positions": "xpos"}, "positions: xpos"),
        ({"window": 8}, "window: 8"),
        ({"n_experts": 4}, "n_experts: 4"),
    ],
)
def test_models_that_leave_virtual_tokens_without_a_meaning_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ChatloomError, match=f"virtual tokens before a model with {said}"):
        prompted(Prefix(2), change)


@pytest.mark.parametrize(
    "change",
    [
        {"positions": "sinusoidal"},
        {"positions": "none"},
        {"norm": "layer", "norm_place": "post", "feedforward": "gelu"},
        {"qk_norm": True, "logit_softcap": 5.0},
        {"tie_embeddings": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_packing_changes_nothing_in_other_models(kind: str, change: dict[str, Any]) -> None:
    model = prompted(KINDS[kind], change)
    segments = [segment(TOKENS[i, : 5 + 3 * i]) for i in range(3)]
    batch = pack(segments, 24, 0)
    with torch.no_grad():
        hidden = model.over(batch)
        for i, item in enumerate(segments):
            alone = model(torch.from_numpy(item.tokens)[None])[0, -1]
            there = hidden[batch.segment_row[i], batch.segment_end[i]]
            torch.testing.assert_close(there, alone, atol=1e-5, rtol=1e-4)


def test_a_prefix_decoder_sees_its_input_both_ways_and_the_virtual_tokens_too() -> None:
    model = prompted(Prompt(3), {"prefix_decoder": True})
    texts = [Segment(TOKENS[i, :12].numpy(), np.array([0] * 6 + [1] * 6), prefix=6) for i in range(2)]
    batch = pack(texts, 24, 0)
    assert batch.tokens.shape[0] == 1
    with torch.no_grad():
        hidden = model.over(batch)
        marks = (torch.arange(12) < 6)[None]
        for i, item in enumerate(texts):
            alone = model(torch.from_numpy(item.tokens)[None], prefix=marks)[0]
            start, end = int(batch.segment_start[i]), int(batch.segment_end[i])
            torch.testing.assert_close(hidden[0, start : end + 1], alone, atol=1e-5, rtol=1e-4)
            assert not torch.allclose(alone, model(torch.from_numpy(item.tokens)[None])[0], atol=1e-3)
            cache = KVCache.empty(model.config, 1, 12)
            read = torch.from_numpy(item.tokens)[None]
            cached = torch.cat((model(read[:, :6], cache=cache), model(read[:, 6:], cache=cache)), dim=1)
            torch.testing.assert_close(cached[0], alone, atol=1e-5, rtol=1e-4)
