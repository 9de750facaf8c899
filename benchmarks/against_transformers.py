"""Same weights, same work, same machine: chatloom beside `transformers`, interleaved, medians and ratios.

    python benchmarks/against_transformers.py [--repeats 7] [--write]

Training: one forward and backward over conversations of 20 to 80 tokens; chatloom packs them, transformers pads them
(as its data collators do). Generation: 64 prompts, 32 new tokens, KV cache on both sides. All threads for both.
`--write` puts the result with date, versions and machine into benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers

from chatloom import __version__
from chatloom.generation.engine import generate
from chatloom.generation.sampling import Sampling
from chatloom.model.allocator import keep_freed_memory
from chatloom.model.config import TransformerConfig
from chatloom.model.huggingface import save_model
from chatloom.model.transformer import Transformer
from chatloom.tokens.packing import Segment, pack
from chatloom.training.next_token_loss import NextTokenLoss

CONFIG = TransformerConfig(4096, 128, 4, 4, 4, 32, 344, 256)
PAD, STOP = 0, 5


def main() -> None:
    """Measure, print one JSON document, and write it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    ours = Transformer(CONFIG, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder, ours, pad_id=PAD, stop_ids=[STOP])
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    theirs.generation_config.eos_token_id = None
    work = [*training(ours, theirs), *generation(ours, theirs)]
    result = {
        "date": date.today().isoformat(),
        "chatloom": __version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {platform.python_implementation()} {platform.python_version()}",
        "parameters": CONFIG.n_parameters(),
        "results": [measure(name, unit, amount, sides, options.repeats) for name, unit, amount, sides in work],
    }
    print(json.dumps(result, indent=1))
    if options.write:
        target = Path(__file__).parent / "results" / f"against_transformers-{result['date']}.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


Work = tuple[str, str, int, dict[str, Callable[[], Any]]]


def training(ours: Transformer, theirs: Any) -> list[Work]:
    """64 conversations, loss on the second half of each."""
    rng = np.random.default_rng(0)
    texts = [rng.integers(6, CONFIG.vocab_size, rng.integers(20, 80)) for _ in range(64)]
    segments = [Segment(text, np.arange(len(text)) >= len(text) // 2) for text in texts]
    longest = max(map(len, texts))
    ids = torch.full((len(texts), longest), PAD)
    labels = torch.full_like(ids, -100)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.from_numpy(text)
        labels[row, len(text) // 2 : len(text)] = torch.from_numpy(text[len(text) // 2 :])
    mask = (torch.arange(longest) < torch.tensor([len(text) for text in texts])[:, None]).long()

    def chatloom() -> float:
        batch = pack(segments, CONFIG.max_positions, PAD)
        terms = NextTokenLoss(ours)(batch)
        loss = terms.total / batch.total_weight
        ours.zero_grad()
        loss.backward()
        return float(loss.detach())

    def hugging_face() -> float:
        logits = theirs(input_ids=ids, attention_mask=mask).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        theirs.zero_grad()
        loss.backward()
        return float(loss.detach())

    if abs(chatloom() - hugging_face()) > 1e-4:
        raise SystemExit("the two losses differ: not the same work")
    return [
        ("train on conversations", "tokens", sum(map(len, texts)), {"chatloom": chatloom, "transformers": hugging_face})
    ]


def generation(ours: Transformer, theirs: Any) -> list[Work]:
    """32 greedy and sampled tokens after 64 prompts of 24 tokens."""
    prompts = np.random.default_rng(1).integers(6, CONFIG.vocab_size, (64, 24))
    ids = torch.from_numpy(prompts)
    new = 32

    def chatloom(temperature: float) -> list[list[int]]:
        found = generate(ours, prompts.tolist(), max_new_tokens=new, sampling=Sampling(temperature=temperature))
        return [item[0].tokens for item in found]

    def hugging_face(sample: bool) -> list[list[int]]:
        with torch.inference_mode():
            out = theirs.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                do_sample=sample,
                top_k=0,
                pad_token_id=PAD,
            )
        return out[:, ids.shape[1] :].tolist()

    if chatloom(0.0) != hugging_face(False):
        raise SystemExit("greedy tokens differ: not the same work")
    amount = len(prompts) * new
    greedy = {"chatloom": lambda: chatloom(0.0), "transformers": lambda: hugging_face(False)}
    sampled = {"chatloom": lambda: chatloom(1.0), "transformers": lambda: hugging_face(True)}
    return [("generate greedily", "tokens", amount, greedy), ("generate by sampling", "tokens", amount, sampled)]


def measure(name: str, unit: str, amount: int, sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Any]:
    """Medians of interleaved runs, and the ratio of the medians (above 1: chatloom is faster)."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(repeats + 1):
        for side, run in sides.items():
            begun = time.perf_counter()
            run()
            seconds[side].append(time.perf_counter() - begun)
    medians = {side: statistics.median(values[1:]) for side, values in seconds.items()}
    return {
        "work": name,
        **{f"{side} {unit}/s": round(amount / value) for side, value in medians.items()},
        "ratio": round(medians["transformers"] / medians["chatloom"], 2),
        "repeats": repeats,
    }


if __name__ == "__main__":
    main()
