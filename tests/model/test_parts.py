"""Promises of a block's parts: norms and where they stand, activations, windows, prefixes, caps, dropout."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from chatloom.generation.engine import generate
from chatloom.generation.sampling import Sampling
from chatloom.model.block import deep_gain, deep_scale
from chatloom.model.config import TransformerConfig
from chatloom.model.feedforward import activate
from chatloom.model.norms import LayerNorm
from chatloom.model.transformer import Transformer
from chatloom.objectives.language_modeling import language_model_loss
from chatloom.objectives.logprobs import full_kl, token_logprobs
from chatloom.tokens.packing import Segment, pack

CONFIG = TransformerConfig(
    vocab_size=40,
    hidden_size=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    intermediate_size=48,
    max_positions=64,
    initializer_range=0.3,
)


def make(**change: object) -> Transformer:
    return Transformer(replace(CONFIG, **change), generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 40, shape, generator=torch.Generator().manual_seed(seed))


def erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf)(x)


@pytest.mark.parametrize("kind", ["swiglu", "geglu", "gelu", "gelu_tanh", "relu2"])
def test_activations_are_their_papers_formulae(kind: str) -> None:
    x = np.linspace(-4, 4, 40).reshape(4, 10)
    gate, up = x[:, :5], x[:, 5:]
    expected = {
        "swiglu": gate / (1 + np.exp(-gate)) * up,
        "geglu": gate * 0.5 * (1 + erf(gate / math.sqrt(2))) * up,
        "gelu": x * 0.5 * (1 + erf(x / math.sqrt(2))),
        "gelu_tanh": 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "relu2": np.maximum(x, 0) ** 2,
    }[kind]
    np.testing.assert_allclose(activate(torch.from_numpy(x), kind).numpy(), expected, atol=1e-12)


def test_layer_norm_has_mean_zero_and_variance_one_before_its_weight_and_bias() -> None:
    norm = LayerNorm(16, 1e-5, bias=True)
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)) * 3 + 2
    plain = norm(x)
    torch.testing.assert_close(plain.mean(-1), torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(plain.var(-1, unbiased=False), torch.ones(5), atol=1e-4, rtol=0)
    with torch.no_grad():
        norm.weight.fill_(2.0)
        assert norm.bias is not None
        norm.bias.fill_(0.5)
    torch.testing.assert_close(norm(x), 2 * plain + 0.5)


@pytest.mark.parametrize("place", ["pre", "post", "sandwich", "deep"])
def test_norms_stand_where_the_table_says(place: str) -> None:
    model = make(norm_place=place)
    with torch.no_grad():
        for number, p in enumerate(model.parameters()):
            if p.dim() == 1:
                p.add_(0.01 * number)
    tokens = draw(1, 7)
    frames = model._frames(model.embedding(tokens), torch.arange(7)[None], None, None, None, None)
    x = model.embedding(tokens)
    alpha = (2 * CONFIG.n_layers) ** 0.25
    for block in model.layers:
        for norm, after, part in (
            (block.attention_norm, block.attention_after, lambda y, b=block: b.attention(y, frames[None], None)),
            (block.feedforward_norm, block.feedforward_after, lambda y, b=block: b.feedforward(y)),
        ):
            x = {
                "pre": lambda: x + part(norm(x)),  # noqa: B023
                "post": lambda: norm(x + part(x)),  # noqa: B023
                "sandwich": lambda: x + after(part(norm(x))),  # noqa: B023
                "deep": lambda: norm(alpha * x + part(x)),  # noqa: B023
            }[place]()
    expected = model.norm(x)
    torch.testing.assert_close(model(tokens), expected, atol=1e-5, rtol=1e-5)
    assert isinstance(model.norm, torch.nn.Identity) == (place in ("post", "deep"))


def test_deepnorm_constants_are_the_papers() -> None:
    """Wang et al. 2022, table 1 (decoder only): alpha (2M)^(1/4), beta (8M)^(-1/4); for 1,000 layers 6.69 and 0.106."""
    assert deep_scale(1000) == pytest.approx(6.6874, rel=1e-4)
    assert deep_gain(1000) == pytest.approx(0.10574, rel=1e-4)
    assert deep_scale(2) == pytest.approx(math.sqrt(2))


def test_deepnorm_initialises_values_and_writers_with_its_gain_and_queries_and_keys_without() -> None:
    config = replace(
        CONFIG, hidden_size=256, n_heads=8, n_kv_heads=8, head_dim=32, intermediate_size=512, norm_place="deep"
    )
    model = Transformer(config, generator=torch.Generator().manual_seed(0))
    beta = (8 * config.n_layers) ** -0.25
    block = model.layers[0]
    q, k, v = block.attention.qkv.weight.split(256)
    gate, up = block.feedforward.gate_up.weight.split(512)
    for matrix, gain in ((q, 1), (k, 1), (v, beta), (block.attention.output.weight, beta), (gate, beta), (up, beta),
                         (block.feedforward.down.weight, beta)):  # fmt: skip
        rows, columns = matrix.shape
        assert matrix.std().item() == pytest.approx(gain * math.sqrt(2 / (rows + columns)), rel=0.03)


def test_deepnorm_keeps_a_very_deep_decoders_update_small() -> None:
    """What it is for: plain descent moves 40 layers hardly more than 4; of Post-LN it moves them 20 times as far."""

    def moved(n_layers: int, place: str) -> float:
        config = replace(CONFIG, n_layers=n_layers, norm_place=place, norm="layer", initializer_range=0.1)  # type: ignore[arg-type]
        model = Transformer(config, generator=torch.Generator().manual_seed(0))
        tokens = draw(4, 12)
        before = model(tokens)
        F.cross_entropy(model.logits(before).flatten(0, 1), draw(48, seed=3)).backward()
        with torch.no_grad():
            for p in model.parameters():
                assert p.grad is not None
                p.sub_(0.05 * p.grad)
        return float((model(tokens) - before).detach().norm() / before.detach().norm())

    assert moved(40, "deep") < 4 * moved(4, "deep")
    assert moved(40, "post") > 10 * moved(4, "post")


def test_query_and_key_norms_bound_the_scores() -> None:
    model = make(qk_norm=True)
    attention = model.layers[0].attention
    heads = torch.randn(1, 3, 6, 8, generator=torch.Generator().manual_seed(0)) * 100
    turned = attention._turn(heads, ())
    torch.testing.assert_close(turned.square().mean(-1), torch.ones(1, 3, 6), atol=1e-4, rtol=0)
    with torch.no_grad():
        attention.query_norm.weight.fill_(2.0)
    again = attention._turn(heads, ())
    torch.testing.assert_close(again[:, :, :4], 2 * turned[:, :, :4])
    assert torch.equal(again[:, :, 4:], turned[:, :, 4:])


@pytest.mark.parametrize("positions", ["rope", "alibi"])
def test_a_window_hides_what_lies_before_it(positions: str) -> None:
    model = make(window=4, positions=positions, n_layers=1)
    tokens = draw(1, 12)
    other = tokens.clone()
    other[0, 3] = (other[0, 3] + 1) % 40
    moved = (model(tokens) - model(other))[0].abs().amax(-1) > 1e-6
    assert moved.tolist() == [False] * 3 + [True] * 4 + [False] * 5


def test_every_so_manieth_layer_sees_all() -> None:
    config = replace(CONFIG, n_layers=6, window=4, full_every=3)
    assert [config.window_of(layer) for layer in range(6)] == [4, 4, None, 4, 4, None]
    model = Transformer(replace(CONFIG, n_layers=2, window=2, full_every=2), generator=torch.Generator().manual_seed(0))
    tokens = draw(1, 12)
    other = tokens.clone()
    other[0, 0] = (other[0, 0] + 1) % 40
    assert ((model(tokens) - model(other))[0, -1].abs().max()) > 1e-6


def test_packed_windows_equal_those_of_rows_alone() -> None:
    for positions in ("rope", "alibi", "t5", "xpos"):
        model = make(window=4, positions=positions)
        pieces = [draw(n, seed=n) for n in (7, 1, 9)]
        batch = pack([Segment(p.numpy(), np.ones(len(p))) for p in pieces], 20, 0)
        hidden = model.over(batch)
        for number, piece in enumerate(pieces):
            row, start, end = (int(t[number]) for t in (batch.segment_row, batch.segment_start, batch.segment_end))
            torch.testing.assert_close(hidden[row, start : end + 1], model(piece[None])[0], atol=1e-5, rtol=1e-5)


def test_a_prefix_decoder_sees_its_prefix_both_ways_and_nothing_else() -> None:
    model = make(prefix_decoder=True, n_layers=1)

    def segment_of(tokens: np.ndarray, prefix: int) -> Segment:
        return Segment(tokens, np.arange(len(tokens)) >= prefix, prefix=prefix)

    segment, neighbour = segment_of(draw(8).numpy(), 4), segment_of(draw(5, seed=2).numpy(), 2)
    batch = pack([segment, neighbour], 16, 0)

    def moved(place: int) -> list[bool]:
        tokens = segment.tokens.copy()
        tokens[place] = (tokens[place] + 1) % 40
        changed = pack([segment_of(tokens, 4), neighbour], 16, 0)
        return ((model.over(batch) - model.over(changed))[0, :13].abs().amax(-1) > 1e-6).tolist()

    assert moved(3) == [True] * 8 + [False] * 5  # in the prefix: all of the segment sees it
    assert moved(5) == [False] * 5 + [True] * 3 + [False] * 5
    causal = make(n_layers=1)
    torch.testing.assert_close(causal.over(batch)[0, :8], causal(torch.from_numpy(segment.tokens)[None])[0])


@pytest.mark.parametrize(
    "change",
    [
        {"window": 4},
        {"window": 3, "full_every": 2},
        {"positions": "alibi"},
        {"positions": "t5"},
        {"positions": "xpos"},
        {"positions": "learned", "norm": "layer", "norm_bias": True, "feedforward": "gelu", "feedforward_bias": True},
        {"positions": "sinusoidal", "norm_place": "sandwich"},
        {"positions": "alibi", "window": 5},
        {"prefix_decoder": True},
        {"n_experts": 4},
        {"logit_softcap": 3.0, "qk_norm": True},
    ],
    ids=str,
)
def test_a_cache_gives_what_whole_rows_give(change: dict[str, object]) -> None:
    """Greedy continuations of prompts of several lengths, padded together, against the whole text read at once."""
    model = make(**change).eval()
    prompts = [draw(n, seed=n).tolist() for n in (6, 9, 3)]
    samples = generate(model, prompts, max_new_tokens=7, sampling=Sampling(temperature=0.0))
    for prompt, (sample,) in zip(prompts, samples, strict=True):
        text = torch.tensor([prompt + sample.tokens])
        prefix = torch.arange(text.shape[1])[None] < len(prompt) if model.config.prefix_decoder else None
        with torch.inference_mode():
            logits = model.logits(model(text, prefix=prefix))[0, len(prompt) - 1 : -1]
        logprobs = logits.log_softmax(-1)
        assert logits.argmax(-1).tolist() == sample.tokens
        found = logprobs.gather(-1, torch.tensor(sample.tokens)[:, None])[:, 0]
        torch.testing.assert_close(found, torch.tensor(sample.logprobs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_capped_logits_have_the_probabilities_and_gradients_of_plain_operations(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(11, 6, generator=generator, dtype=torch.float64).requires_grad_()
    matrix = torch.randn(13, 6, generator=generator, dtype=torch.float64).requires_grad_()
    targets, weights = draw(11) % 13, torch.linspace(0.1, 1.0, 11, dtype=torch.float64)

    def plain() -> tuple[torch.Tensor, torch.Tensor]:
        capped = 2.5 * torch.tanh(hidden @ matrix.T / 2.5) / temperature
        logprobs = capped.log_softmax(-1)
        return logprobs.gather(-1, targets[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)

    expected, entropy = plain()
    found, found_entropy = token_logprobs(
        hidden, matrix, targets, temperature=temperature, softcap=2.5, with_entropy=True, chunk_size=4
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_entropy, entropy)
    want = torch.autograd.grad((expected * weights + entropy.square()).sum(), (hidden, matrix))
    have = torch.autograd.grad((found * weights + found_entropy.square()).sum(), (hidden, matrix))
    torch.testing.assert_close(have, want)
    if temperature == 1.0:
        loss = language_model_loss(hidden, matrix, targets, weights, softcap=2.5, z_loss=0.1, chunk_size=4)
        norm = (2.5 * torch.tanh(hidden @ matrix.T / 2.5)).logsumexp(-1)
        want_loss = (weights * (0.1 * norm**2 - plain()[0])).sum()
        torch.testing.assert_close(loss.total, want_loss)
        torch.testing.assert_close(
            torch.autograd.grad(loss.total, (hidden, matrix)), torch.autograd.grad(want_loss, (hidden, matrix))
        )
    with torch.no_grad():
        p, q = hidden.detach(), hidden.detach().flip(0)
        log_p = (2.5 * torch.tanh(p @ matrix.T / 2.5)).log_softmax(-1)
        log_q = (q @ matrix.T).log_softmax(-1)
        kl = full_kl(p, matrix.detach(), q, matrix.detach(), softcaps=(2.5, None))
        torch.testing.assert_close(kl, (log_p.exp() * (log_p - log_q)).sum(-1))


def test_dropout_is_for_training_alone_and_scales_what_stays() -> None:
    model = make(dropout=0.5, attention_dropout=0.3)
    tokens = draw(2, 10)
    model.eval()
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    torch.manual_seed(0)
    first = model(tokens)
    torch.manual_seed(0)
    assert torch.equal(model(tokens), first)
    assert not torch.equal(model(tokens), first)
    embedded = model._embed(draw(400, 10), torch.arange(10)[None])
    assert float((embedded == 0).float().mean()) == pytest.approx(0.5, abs=0.02)
