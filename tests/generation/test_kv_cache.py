"""Promises of the KV cache: reading in pieces, moving rows and repeating rows change no hidden state."""

from __future__ import annotations

import pytest
import torch

from chatloom.generation.kv_cache import KVCache
from chatloom.model.config import TransformerConfig
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
    initializer_range=0.3,
)


def make() -> Transformer:
    return Transformer(CONFIG, generator=torch.Generator().manual_seed(0))


def draw(*shape: int) -> torch.Tensor:
    return torch.randint(0, 60, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pieces", [[12], [1] * 12, [5, 1, 1, 4, 1], [1, 11]])
@torch.inference_mode()
def test_reading_in_pieces_equals_reading_at_once(pieces: list[int]) -> None:
    model, tokens = make(), draw(3, 12)
    cache = KVCache.empty(CONFIG, 3, 12)
    parts = [model(piece, cache=cache) for piece in tokens.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), atol=1e-5, rtol=1e-5)
    assert cache.length == 12


@pytest.mark.parametrize("pieces", [[10], [4, 3, 1, 1, 1], [1] * 10])
@torch.inference_mode()
def test_hidden_states_do_not_depend_on_padding_before_them(pieces: list[int]) -> None:
    model = make()
    lengths = [10, 7, 1, 4]
    rows = [draw(10)[:n].clamp_min(1) for n in lengths]
    tokens = torch.stack([torch.nn.functional.pad(row, (10 - len(row), 0)) for row in rows])
    cache = KVCache.empty(CONFIG, 4, 10, padding=torch.tensor([10 - n for n in lengths]))
    hidden = torch.cat([model(piece, cache=cache) for piece in tokens.split(pieces, dim=1)], dim=1)
    assert hidden.isfinite().all()
    for row, n, found in zip(rows, lengths, hidden, strict=True):
        torch.testing.assert_close(found[10 - n :], model(row[None])[0], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_kept_rows_go_on_as_if_the_others_had_never_been() -> None:
    model, tokens = make(), draw(8, 9)
    padding = torch.tensor([0, 3, 1, 0, 2, 0, 5, 4])
    cache = KVCache.empty(CONFIG, 8, 9, padding=padding)
    expected = model(tokens, cache=cache)[:, -1]
    cache = KVCache.empty(CONFIG, 8, 9, padding=padding)
    model(tokens[:, :5], cache=cache)
    rows = torch.arange(8)
    rows = rows[cache.keep(torch.tensor([1, 3, 4, 6, 7]))]
    assert sorted(rows.tolist()) == [1, 3, 4, 6, 7]
    model(tokens[rows, 5:7], cache=cache)
    rows = rows[cache.keep(torch.tensor([2, 4]))]
    assert cache.batch == 2
    for step in (7, 8):
        hidden = model(tokens[rows, step : step + 1], cache=cache)[:, 0]
    torch.testing.assert_close(hidden, expected[rows], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_repeated_rows_share_the_prompt_and_then_part() -> None:
    model, tokens = make(), draw(2, 6)
    cache = KVCache.empty(CONFIG, 2, 7, padding=torch.tensor([0, 2]))
    model(tokens, cache=cache)
    wide = cache.expand(torch.tensor([3, 2]))
    last = torch.tensor([[1], [2], [3], [4], [5]])
    hidden = model(last, cache=wide)[:, 0]
    for row, source in enumerate([0, 0, 0, 1, 1]):
        start = 0 if source == 0 else 2
        whole = torch.cat([tokens[source, start:], last[row]])[None]
        torch.testing.assert_close(hidden[row], model(whole)[0, -1], atol=1e-5, rtol=1e-5)
    assert cache.length == 6, "the first cache is not moved by its copy"


@torch.inference_mode()
def test_a_view_of_some_rows_fills_the_whole() -> None:
    model, tokens = make(), draw(4, 6)
    cache = KVCache.empty(CONFIG, 4, 7)
    for start in (0, 3):
        model(tokens[start : start + 3], cache=cache.rows(start, min(start + 3, 4)))
    cache.advance(6)
    last = draw(4, 1)
    expected = model(torch.cat([tokens, last], dim=1))[:, -1]
    torch.testing.assert_close(model(last, cache=cache)[:, 0], expected, atol=1e-5, rtol=1e-5)


def test_more_tokens_than_slots_is_an_error() -> None:
    with pytest.raises(ValueError, match="4 tokens do not fit a cache of 3 slots"):
        make()(draw(1, 4), cache=KVCache.empty(CONFIG, 1, 3))


def test_segments_and_a_cache_together_are_refused() -> None:
    with pytest.raises(ValueError, match="segments and cache"):
        make()(draw(1, 4), segments=torch.zeros(1, 4), cache=KVCache.empty(CONFIG, 1, 4))
