"""Promises of the decoder: padding, packing and row order never change a real token's hidden state."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from chatloom.model.attention import boundaries_of
from chatloom.model.config import TransformerConfig
from chatloom.model.feedforward import swiglu
from chatloom.model.norms import rms_norm
from chatloom.model.positions import RotaryTable, rotate
from chatloom.model.transformer import Transformer

CONFIG = TransformerConfig(
    vocab_size=60,
    hidden_size=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    intermediate_size=48,
    max_positions=64,
    initializer_range=0.3,  # large enough that attention is far from uniform
)


def make(config: TransformerConfig = CONFIG, seed: int = 0) -> Transformer:
    return Transformer(config, generator=torch.Generator().manual_seed(seed))


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, CONFIG.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def pack(pieces: list[torch.Tensor], length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One row of tokens, positions and segments, padded on the right."""
    n = sum(len(p) for p in pieces)
    tokens = F.pad(torch.cat(pieces), (0, length - n))
    positions = F.pad(torch.cat([torch.arange(len(p)) for p in pieces]), (0, length - n))
    segments = torch.cat([torch.full((len(p),), i) for i, p in enumerate(pieces)])
    return tokens[None], positions[None], F.pad(segments, (0, length - n), value=-1)[None]


def test_hidden_states_equal_a_plain_numpy_decoder() -> None:
    """An independent decoder, one token at a time with loops, from the papers' formulae."""
    config = replace(CONFIG, n_layers=2, qkv_bias=True, output_bias=True, tie_embeddings=False)
    model = make(config).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # norms and biases away from their trivial start
                parameter.add_(torch.linspace(-0.3, 0.4, parameter.numel()) + 0.1 * len(name))
    w = {name: p.detach().numpy() for name, p in model.named_parameters()}
    tokens = draw(1, 9)
    d, h, kv = config.head_dim, config.n_heads, config.n_kv_heads

    def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config.norm_eps) * weight

    def turn(x: np.ndarray, t: int) -> np.ndarray:
        out = x.copy()
        for i in range(d // 2):
            a = t * config.rope_theta ** (-2 * i / d)
            out[i] = x[i] * math.cos(a) - x[i + d // 2] * math.sin(a)
            out[i + d // 2] = x[i + d // 2] * math.cos(a) + x[i] * math.sin(a)
        return out

    x = w["embedding.weight"][tokens[0].numpy()]
    for layer in range(config.n_layers):
        p = f"layers.{layer}."
        qkv = norm(x, w[p + "attention_norm.weight"]) @ w[p + "attention.qkv.weight"].T + w[p + "attention.qkv.bias"]
        heads = qkv.reshape(len(x), h + 2 * kv, d)
        mixed = np.zeros((len(x), h, d))
        for t in range(len(x)):
            for head in range(h):
                key = h + head // (h // kv)
                query = turn(heads[t, head], t) / math.sqrt(d)
                scores = np.array([query @ turn(heads[s, key], s) for s in range(t + 1)])
                weights = np.exp(scores - scores.max())
                mixed[t, head] = (weights / weights.sum()) @ heads[: t + 1, key + kv]
        x = x + mixed.reshape(len(x), -1) @ w[p + "attention.output.weight"].T + w[p + "attention.output.bias"]
        gate, up = np.split(norm(x, w[p + "feedforward_norm.weight"]) @ w[p + "feedforward.gate_up.weight"].T, 2, -1)
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[p + "feedforward.down.weight"].T
    expected = norm(x, w["norm.weight"])
    # The angles are fp32 (as in transformers), so the comparison cannot be at fp64's precision.
    np.testing.assert_allclose(model(tokens)[0].detach().numpy(), expected, atol=2e-5)


def test_packed_rows_equal_unpacked_rows() -> None:
    model = make()
    pieces = [draw(n, seed=n) for n in (7, 1, 12, 5)]
    packed = model(*pack(pieces, 32))[0]
    start = 0
    for piece in pieces:
        alone = model(piece[None])[0]
        torch.testing.assert_close(packed[start : start + len(piece)], alone, atol=1e-5, rtol=1e-5)
        start += len(piece)


def test_hidden_states_do_not_depend_on_padding() -> None:
    model = make()
    piece = draw(9)
    short, long = model(*pack([piece], 9))[0], model(*pack([piece], 40))[0]
    torch.testing.assert_close(short, long[:9], atol=1e-5, rtol=1e-5)


def test_padding_is_finite_and_gives_finite_gradients() -> None:
    model = make()
    tokens, positions, segments = pack([draw(4)], 8)
    empty = torch.full_like(segments, -1)
    hidden = model(tokens.repeat(2, 1), positions.repeat(2, 1), torch.cat([segments, empty]))
    assert hidden.isfinite().all()
    hidden.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_padding_content_never_reaches_a_real_token() -> None:
    model = make()
    tokens, positions, segments = pack([draw(5)], 12)
    other = tokens.clone()
    other[segments == -1] = 17
    assert torch.equal(model(tokens, positions, segments)[0, :5], model(other, positions, segments)[0, :5])


def test_attention_is_causal_and_stays_in_its_segment() -> None:
    model = make()
    tokens, positions, segments = pack([draw(6), draw(6, seed=2)], 12)
    changed = tokens.clone()
    changed[0, 4] = (changed[0, 4] + 1) % CONFIG.vocab_size
    before, after = model(tokens, positions, segments)[0], model(changed, positions, segments)[0]
    moved = (before - after).abs().amax(-1) > 1e-6
    assert moved.tolist() == [False] * 4 + [True] * 2 + [False] * 6


def test_rows_do_not_influence_each_other() -> None:
    model = make()
    tokens = draw(4, 10)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(model(tokens)[order], model(tokens[order]), atol=1e-6, rtol=1e-5)


def test_gradients_do_not_depend_on_packing() -> None:
    pieces = [draw(n, seed=n) for n in (6, 9, 3)]
    packed, apart = make(), make()
    tokens, positions, segments = pack(pieces, 20)
    hidden = packed(tokens, positions, segments)
    # A fixed direction: the squared length of a normalised vector hardly has a gradient.
    direction = torch.randn(CONFIG.hidden_size, generator=torch.Generator().manual_seed(3))
    (hidden[segments >= 0] @ direction).sum().backward()
    for piece in pieces:
        (apart(piece[None]) @ direction).sum().backward()
    for (name, a), b in zip(packed.named_parameters(), apart.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        scale = b.grad.abs().max()
        torch.testing.assert_close(a.grad, b.grad, atol=float(1e-5 * scale), rtol=1e-4, msg=name)


def test_gradients_equal_finite_differences() -> None:
    x = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = torch.linspace(0.5, 1.5, 8, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: rms_norm(a, b, 1e-5), (x, weight))
    assert torch.autograd.gradcheck(swiglu, (x,))
    cos, sin = RotaryTable(4, 10, 100.0)(torch.tensor([[0, 5, 9]]), torch.float64)
    heads = torch.randn(1, 3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(lambda h: rotate(h, cos, sin), (heads,), fast_mode=False, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_the_same_with_and_without_gradients(dtype: torch.dtype) -> None:
    model = make().to(dtype)
    tokens, positions, segments = pack([draw(6), draw(6, seed=2)], 14)
    with_gradient = model(tokens, positions, segments)
    with torch.inference_mode():
        without = model(tokens, positions, segments)
    assert with_gradient.dtype == dtype
    assert torch.equal(with_gradient.detach(), without)


def test_rms_norm_equals_torch() -> None:
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    weight = torch.linspace(0.1, 2.0, 16)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), F.rms_norm(x, (16,), weight, 1e-5))
    assert rms_norm(torch.zeros(2, 16), weight, 1e-5).eq(0).all()


def test_training_after_sampling_works_with_the_same_model() -> None:
    """Tables made under inference mode must not be saved for a backward pass."""
    model = make()
    with torch.inference_mode():
        model(draw(1, 4))
    model(draw(1, 4)).sum().backward()
    assert model.embedding.weight.grad is not None


def test_initialisation_follows_its_table() -> None:
    config = replace(CONFIG, hidden_size=256, intermediate_size=512, vocab_size=1000, initializer_range=0.02)
    model = make(config)
    for name, p in model.named_parameters():
        if p.dim() == 1:
            assert p.eq(1.0).all()
            continue
        residual = name.endswith(("attention.output.weight", "feedforward.down.weight"))
        expected = 0.02 / math.sqrt(2 * config.n_layers) if residual else 0.02
        assert p.std().item() == pytest.approx(expected, rel=0.05), name
    assert torch.equal(make(config).embedding.weight, model.embedding.weight)
    assert not torch.equal(make(config, seed=1).embedding.weight, model.embedding.weight)


def test_tied_weights_are_one_tensor_and_untied_are_two() -> None:
    tied, untied = make(), make(replace(CONFIG, tie_embeddings=False))
    assert tied.unembedding is tied.embedding.weight
    assert untied.unembedding is not untied.embedding.weight
    hidden = untied(draw(1, 3))
    assert torch.equal(untied.logits(hidden), hidden @ untied.unembedding.T)


def test_a_position_outside_the_model_is_an_error() -> None:
    with pytest.raises(IndexError):
        make()(draw(1, 65))
    with pytest.raises(IndexError):
        make()(torch.tensor([[60]]))


def test_boundaries_are_where_segments_and_padding_begin() -> None:
    segments = torch.tensor([[0, 0, 1, 1], [1, 2, -1, -1]])  # a segment id that goes on in the next row is another run
    assert boundaries_of(segments).tolist() == [0, 2, 4, 5, 6, 8]


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch compiles for a processor with a C++ compiler")
def test_compiled_blocks_give_the_same_loss_and_gradient() -> None:
    tokens, positions, segments = pack([draw(n) for n in (3, 4, 5)], 14)

    def gradient(*, compiled: bool) -> torch.Tensor:
        model = make()
        if compiled:
            model.compile_blocks()
        model(tokens, positions, segments).square().sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    expected = gradient(compiled=False)
    assert (gradient(compiled=True) - expected).norm() < 1e-5 * expected.norm()


def test_under_autocast_the_residual_stream_is_half_precision_and_weights_keep_their_own() -> None:
    model, tokens = make(), draw(2, 6)
    exact = model(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(tokens)
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).norm() < 0.02 * exact.norm()
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
