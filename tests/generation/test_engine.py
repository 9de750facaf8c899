"""Promises of the generator: the cache, the batch, the order and the neighbours change nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chatloom.errors import ChatloomError
from chatloom.generation.engine import Sample, generate, stream
from chatloom.generation.sampling import Sampling, choose, keyed_uniform, prompt_key
from chatloom.model.config import TransformerConfig
from chatloom.model.huggingface import save_model
from chatloom.model.transformer import Transformer
from chatloom.tokens.vocabulary import Vocabulary

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
STOPS = (3, 11, 12, 13)
RULES = [Sampling(0.0), Sampling(), Sampling(0.7), Sampling(0.9, top_k=20, top_p=0.9, repetition_penalty=1.2)]


@pytest.fixture(scope="module")
def model() -> Transformer:
    return Transformer(CONFIG, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = [3, 17, 1, 9, 9, 5, 22, 2, 12, 30, 4, 7]
    return [torch.randint(0, 60, (n,), generator=generator).tolist() for n in lengths]


@torch.inference_mode()
def without_cache(
    model: Transformer,
    prompt: list[int],
    sampling: Sampling,
    *,
    steps: int,
    seed: int,
    sample: int,
    stop_ids: tuple[int, ...],
) -> Sample:
    """The plain loop: the whole sequence through the model again for every token, alone."""
    tokens: list[int] = []
    logprobs: list[float] = []
    for step in range(steps):
        ids = torch.tensor([prompt + tokens])
        logits = model.logits(model(ids)[:, -1])
        seen = torch.zeros(1, CONFIG.vocab_size, dtype=torch.bool)
        seen[0, ids[0]] = True
        uniform = keyed_uniform(seed, [prompt_key(prompt)], [sample], [step])
        token, _ = choose(logits, uniform, sampling, seen)
        tokens.append(int(token))
        raw = torch.log_softmax(logits[0].double() / (sampling.temperature or 1.0), dim=-1)
        logprobs.append(float(raw[int(token)]))
        if tokens[-1] in stop_ids:
            return Sample(tokens, logprobs, True)
    return Sample(tokens, logprobs, False)


def same(found: Sample, expected: Sample) -> None:
    assert found.tokens == expected.tokens
    assert found.finished == expected.finished
    assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-5)


@pytest.mark.parametrize("sampling", RULES, ids=str)
def test_generation_with_cache_equals_generation_without(
    model: Transformer, prompts: list[list[int]], sampling: Sampling
) -> None:
    results = generate(model, prompts, n=3, max_new_tokens=12, sampling=sampling, seed=4, stop_ids=STOPS)
    assert [len(group) for group in results] == [3] * len(prompts)
    ended = 0
    for prompt, group in zip(prompts, results, strict=True):
        for number, found in enumerate(group):
            expected = without_cache(model, prompt, sampling, steps=12, seed=4, sample=number, stop_ids=STOPS)
            same(found, expected)
            ended += found.finished and len(found.tokens) < 12
    assert ended > 3, "some rows must end early, or moving rows was not tested"


@pytest.mark.parametrize("batch_size", [1, 2, 5, 7, 64])
def test_samples_do_not_depend_on_the_batch(model: Transformer, prompts: list[list[int]], batch_size: int) -> None:
    expected = generate(model, prompts, n=4, max_new_tokens=10, seed=2, stop_ids=STOPS)
    found = generate(model, prompts, n=4, max_new_tokens=10, seed=2, stop_ids=STOPS, batch_size=batch_size)
    for a, b in zip(found, expected, strict=True):
        for one, two in zip(a, b, strict=True):
            same(one, two)


def test_samples_do_not_depend_on_neighbours_order_or_number_of_samples(
    model: Transformer, prompts: list[list[int]]
) -> None:
    expected = generate(model, prompts, n=2, max_new_tokens=8, seed=2)
    backwards = generate(model, prompts[::-1], n=3, max_new_tokens=8, seed=2)[::-1]
    for i, prompt in enumerate(prompts):
        (alone,) = generate(model, [prompt], max_new_tokens=8, seed=2)
        same(alone[0], expected[i][0])
        same(backwards[i][1], expected[i][1])


def test_large_prefills_in_blocks_change_nothing(
    model: Transformer, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = generate(model, prompts, n=2, max_new_tokens=6, seed=2)
    monkeypatch.setattr("chatloom.generation.engine._PREFILL_TOKENS", 70)
    for a, b in zip(generate(model, prompts, n=2, max_new_tokens=6, seed=2), expected, strict=True):
        for one, two in zip(a, b, strict=True):
            same(one, two)


def test_seeds_and_keys_decide_the_samples(model: Transformer, prompts: list[list[int]]) -> None:
    def draw(**kw: object) -> list[list[int]]:
        result = generate(model, [prompts[1], prompts[1]], n=2, max_new_tokens=10, **kw)  # type: ignore[arg-type]
        return [sample.tokens for group in result for sample in group]

    assert draw(seed=1) == draw(seed=1)
    assert draw(seed=1) != draw(seed=2)
    first, second, again, _ = draw(seed=1)
    assert first != second, "samples of one prompt differ"
    assert first == again, "equal prompts get equal samples"
    keyed = draw(seed=1, prompt_keys=[5, 6])
    assert keyed[0] != keyed[2], "unless they are given keys of their own"
    assert draw(seed=1, prompt_keys=[6, 5]) == keyed[2:] + keyed[:2]


def test_sampler_logprobs_equal_the_trainers(model: Transformer, prompts: list[list[int]]) -> None:
    """log softmax(logits / T) of one packed forward pass over prompt and reply, as training computes it."""
    temperature = 0.7
    results = generate(model, prompts, max_new_tokens=12, sampling=Sampling(temperature), seed=3, stop_ids=STOPS)
    rows = [p + r[0].tokens for p, r in zip(prompts, results, strict=True)]
    tokens = torch.tensor([token for row in rows for token in row])[None]
    positions = torch.tensor([t for row in rows for t in range(len(row))])[None]
    segments = torch.tensor([i for i, row in enumerate(rows) for _ in row])[None]
    logprobs = torch.log_softmax(model.logits(model(tokens, positions, segments)[0]) / temperature, dim=-1)
    start = 0
    for prompt, result, row in zip(prompts, results, rows, strict=True):
        for t, found in enumerate(result[0].logprobs):
            place = start + len(prompt) + t
            assert found == pytest.approx(logprobs[place - 1, int(tokens[0, place])].item(), abs=1e-5)
        start += len(row)


def test_logprobs_ignore_truncation_and_penalty(model: Transformer, prompts: list[list[int]]) -> None:
    sampling = Sampling(0.5, top_k=3, repetition_penalty=2.0)
    ((found,),) = generate(model, prompts[:1], max_new_tokens=1, sampling=sampling, seed=1)
    with torch.inference_mode():
        raw = torch.log_softmax(model.logits(model(torch.tensor(prompts[:1]))[0, -1]) / 0.5, dim=-1)
    assert found.logprobs[0] == pytest.approx(raw[found.tokens[0]].item(), abs=1e-5)


def test_a_reply_ends_at_its_first_stop_token_and_keeps_it(model: Transformer, prompts: list[list[int]]) -> None:
    free = generate(model, prompts, n=16, max_new_tokens=10, seed=6)
    stopped = generate(model, prompts, n=16, max_new_tokens=10, seed=6, stop_ids=STOPS)
    seen_last = False
    for a, b in zip(free, stopped, strict=True):
        for whole, cut in zip(a, b, strict=True):
            assert not whole.finished
            assert len(whole.tokens) == 10
            end = next((i + 1 for i, token in enumerate(whole.tokens) if token in STOPS), None)
            assert cut.tokens == whole.tokens[:end]
            assert len(cut.logprobs) == len(cut.tokens)
            assert cut.finished == (end is not None)
            seen_last |= end == 10
    assert seen_last, "one reply must end exactly at the limit, or that edge was not tested"


def test_every_row_may_end_at_once(model: Transformer, prompts: list[list[int]]) -> None:
    results = generate(model, prompts, n=2, max_new_tokens=5, stop_ids=range(60))
    assert all(len(s.tokens) == 1 and s.finished for group in results for s in group)


def test_the_context_may_be_filled_but_not_exceeded(model: Transformer) -> None:
    prompt = [1] * 54
    ((sample,),) = generate(model, [prompt], max_new_tokens=10)
    assert len(sample.tokens) == 10
    with pytest.raises(ChatloomError, match=r"prompt 1 has 54 tokens and up to 11 .* together 65.*context is 64"):
        generate(model, [[1], prompt], max_new_tokens=11)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompts": [[1], []]}, "prompt 1 is empty"),
        ({"prompts": [[1, 60]]}, "holds token 60, outside the vocabulary"),
        ({"prompts": [[1, -1]]}, "holds token -1"),
        ({"stop_ids": [60]}, "stop id 60 is outside"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"n": 0}, "n is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"prompt_keys": [1, 2]}, "2 prompt_keys for 1 prompts"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_read(
    model: Transformer, change: dict[str, object], words: str
) -> None:
    arguments = {"prompts": [[1]], "max_new_tokens": 2, **change}
    with pytest.raises(ChatloomError, match=words):
        generate(model, **arguments)  # type: ignore[arg-type]


def test_no_prompts_give_no_samples(model: Transformer) -> None:
    assert generate(model, [], max_new_tokens=3) == []


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.0)])
def test_a_broken_model_is_an_error_and_not_a_text(sampling: Sampling) -> None:
    model = Transformer(CONFIG)
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    with pytest.raises(ChatloomError, match="not finite"):
        generate(model, [[1, 2]], max_new_tokens=3, sampling=sampling)
    with pytest.raises(ChatloomError, match="not finite"):
        list(stream(model, [1, 2], max_new_tokens=3, sampling=sampling))


@pytest.mark.parametrize("sampling", RULES, ids=str)
def test_streaming_gives_the_same_tokens_as_generating(
    model: Transformer, prompts: list[list[int]], sampling: Sampling
) -> None:
    for prompt in prompts[:4]:
        (group,) = generate(model, [prompt], n=2, max_new_tokens=15, sampling=sampling, seed=8, stop_ids=STOPS)
        for number, expected in enumerate(group):
            found = stream(model, prompt, max_new_tokens=15, sampling=sampling, seed=8, stop_ids=STOPS, sample=number)
            assert list(found) == expected.tokens


def test_a_stream_fills_the_context_and_refuses_a_full_one(model: Transformer) -> None:
    assert len(list(stream(model, [1] * 60))) == 4
    with pytest.raises(ChatloomError, match="context is 64"):
        stream(model, [1] * 64)
    with pytest.raises(ChatloomError, match="together 65"):
        stream(model, [1] * 60, max_new_tokens=5)


def test_a_stream_can_be_left_without_changing_torchs_mode(model: Transformer) -> None:
    """Inference mode must not leak out of the iterator between two tokens."""
    tokens = stream(model, [1, 2, 3])
    next(tokens)
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    tokens.close()


def test_streamed_text_never_shows_half_a_character() -> None:
    vocabulary = Vocabulary.train(["plain words only"], 262)
    ids = vocabulary.encode("né, 你好 🙂!")
    pieces = list(vocabulary.decode_stream(iter(ids)))
    assert len(ids) > len("né, 你好 🙂!"), "characters must be split over tokens"
    assert "".join(pieces) == "né, 你好 🙂!"
    assert not any("�" in piece for piece in pieces)
    model = Transformer(replace(CONFIG, vocab_size=vocabulary.size), generator=torch.Generator().manual_seed(0))
    text = "".join(vocabulary.decode_stream(stream(model, ids[:4], seed=1)))
    (((sample),),) = generate(model, [ids[:4]], max_new_tokens=60, seed=1)
    assert text == vocabulary.decode(sample.tokens)


def test_generation_leaves_the_model_trainable(prompts: list[list[int]]) -> None:
    model = Transformer(CONFIG, generator=torch.Generator().manual_seed(0))
    generate(model, prompts[:2], max_new_tokens=4)
    model(torch.tensor([prompts[1]])).sum().backward()
    assert model.embedding.weight.grad is not None


def test_bfloat16_models_generate() -> None:
    model = Transformer(CONFIG, generator=torch.Generator().manual_seed(0)).bfloat16()
    ((sample,),) = generate(model, [[1, 2, 3]], max_new_tokens=4)
    assert len(sample.tokens) == 4


@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_greedy_replies_equal_those_of_transformers(
    model: Transformer, prompts: list[list[int]], penalty: float, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    save_model(tmp_path, model, pad_id=0, stop_ids=STOPS)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    sampling = Sampling(0.0, repetition_penalty=penalty)
    ours = generate(model, prompts, max_new_tokens=12, sampling=sampling, stop_ids=STOPS)
    for prompt, (sample,) in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt])
        reply = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            repetition_penalty=penalty,
        )
        assert reply[0, len(prompt) :].tolist() == sample.tokens
