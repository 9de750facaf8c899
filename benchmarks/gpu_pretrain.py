"""Pretraining on one CUDA device: chatloom beside the plain loop around the Llama of transformers, in turn.

    python benchmarks/gpu_pretrain.py [--sizes 124m,350m,750m] [--repeats 5] [--write]

bf16 autocast over fp32 weights, AdamW (fused), gradient clipping, rows of 2,048 tokens, vocabulary 32,768, on both
sides. transformers runs SDPA attention over full rows, compiled layer by layer, which lets it take causal kernels (and
at 750m also compiled whole, which does not). chatloom runs the same full rows, and rows of packed documents whose
attention stays inside each document. Two micro-batches make an optimizer step. FLOPs are those of the weights and of
the keys that tokens see, divided by the rate of [8192, 8192] products measured just before. Numerics: loss and gradient
on this device against those of the processor in fp32.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chatloom import __version__
from chatloom.model.config import TransformerConfig
from chatloom.model.transformer import Transformer
from chatloom.scaling.speed import measured_matmul_rate
from chatloom.tokens.packing import Batch, Segment, build
from chatloom.training.next_token_loss import NextTokenLoss
from chatloom.training.optimizers import ScheduledOptimizer
from chatloom.training.settings import OptimizerSettings
from chatloom.training.trainer import Trainer

ROW, VOCAB, PAD = 2048, 32_768, 0
# hidden, layers, heads, intermediate, rows of a micro-batch
SIZES = {"124m": (768, 12, 12, 2048, 32), "350m": (1024, 24, 16, 2816, 16), "750m": (1536, 24, 12, 4096, 16)}
MICRO_BATCHES = 2
BY_LAYERS = ("transformers by layers", "chatloom", "chatloom packed")
SIDES = {"124m": BY_LAYERS, "350m": BY_LAYERS, "750m": (*BY_LAYERS, "transformers")}  # the whole: a minute to compile


def config_of(size: str) -> TransformerConfig:
    """The shape of a size; heads of 64 to 128."""
    hidden, layers, heads, intermediate, _ = SIZES[size]
    return TransformerConfig(VOCAB, hidden, layers, heads, heads, hidden // heads, intermediate, ROW)


def batch_of(rows: int, *, documents: bool, seed: int) -> Batch:
    """Rows of random tokens: one segment each, or documents of about 500 tokens (log-normal) that fill them."""
    draw = np.random.default_rng(seed)
    segments, layout = [], []
    for _ in range(rows):
        row: list[int] = []
        left = ROW
        while left:
            wanted = int(np.exp(draw.normal(5.9, 0.9))) + 8 if documents else ROW
            length = left if wanted + 8 > left else wanted
            tokens = draw.integers(1, VOCAB, length)
            row.append(len(segments))
            segments.append(Segment(tokens, np.ones(length)))
            left -= length
        layout.append(row)
    return build(segments, layout, ROW, PAD, trim=False)


def trainer_of(model: torch.nn.Module) -> Trainer:
    """The trainer that stage `pretrain` makes."""
    optimizer = ScheduledOptimizer({"model": model}, {"model": OptimizerSettings(lr=1e-4, warmup=0)}, 1000)
    return Trainer({"model": model}, optimizer, precision="bf16")


def ours(size: str, *, documents: bool) -> Callable[[], None]:
    """One optimizer step of chatloom."""
    model = Transformer(config_of(size), initialise=False).to("cuda")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.02)
    model.compile_blocks()
    trainer, loss = trainer_of(model), NextTokenLoss(model)
    rows = SIZES[size][-1]
    host = [batch_of(rows, documents=documents, seed=i).pinned() for i in range(MICRO_BATCHES)]
    return lambda: void(trainer.update([batch.to("cuda") for batch in host], loss))


def theirs(size: str, *, layers_apart: bool) -> Callable[[], None]:
    """One optimizer step of the plain loop around transformers' Llama, compiled whole or layer by layer."""
    import transformers

    hidden, layers, heads, intermediate, rows = SIZES[size]
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, intermediate_size=intermediate, max_position_embeddings=ROW,
        tie_word_embeddings=True, use_cache=False, attn_implementation="sdpa",
    )  # fmt: skip
    with torch.device("cuda"):
        model = transformers.LlamaForCausalLM(config).float()
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)
    if layers_apart:
        for layer in model.model.layers:
            layer.compile()
    else:
        model.compile()
    host = [batch_of(rows, documents=False, seed=i).tokens.pin_memory() for i in range(MICRO_BATCHES)]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device="cuda")
        for tokens in host:
            tokens = tokens.to("cuda", non_blocking=True)
            with torch.autocast("cuda", torch.bfloat16):
                loss = model(input_ids=tokens, labels=tokens).loss / MICRO_BATCHES
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total.item()

    return step


def void(_: Any) -> None:
    """Forget a result."""


def measure_side(size: str, side: str, repeats: int) -> dict[str, float]:
    """Seconds of a step (median) and of the first one (it compiles), and memory at the highest."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch._dynamo.reset()
    if side.startswith("transformers"):
        step = theirs(size, layers_apart=side.endswith("by layers"))
    else:
        step = ours(size, documents=side.endswith("packed"))
    started = time.perf_counter()
    step()
    first = time.perf_counter() - started
    step()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return {
        "seconds": statistics.median(times),
        "spread": round(max(times) / min(times) - 1, 4),
        "first_seconds": round(first, 1),
        "memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
    }


def mean_keys(documents: bool) -> float:
    """Keys that a token sees on average: half a row, or half of what its document has."""
    if not documents:
        return (ROW + 1) / 2
    batch = batch_of(64, documents=True, seed=0)
    return batch.n_keys / batch.n_tokens


def measure(size: str, sides: Sequence[str], repeats: int, peak: float) -> dict[str, Any]:
    """All sides of one size, one after the other."""
    config = config_of(size)
    tokens = MICRO_BATCHES * SIZES[size][-1] * ROW
    found = {side: measure_side(size, side, repeats) for side in sides}
    rates = {side: tokens / run["seconds"] for side, run in found.items()}
    # flops_per_token takes a context and halves it
    flops = {side: config.flops_per_token(2 * mean_keys(side.endswith("packed")) - 1) for side in sides}
    rivals = [side for side in sides if side.startswith("transformers")]
    best = max(rates[side] for side in rivals)
    return {
        "size": size,
        "parameters": config.n_parameters(),
        "tokens_per_step": tokens,
        "matmul_tflops": round(peak / 1e12, 1),
        "tokens_per_second": {side: round(rate) for side, rate in rates.items()},
        "mfu": {side: round(flops[side] * rate / peak, 4) for side, rate in rates.items()},
        "ratio_to_best_transformers": {s: round(rates[s] / best, 3) for s in sides if s not in rivals},
        "spread": {side: run["spread"] for side, run in found.items()},
        "memory_gb": {side: run["memory_gb"] for side, run in found.items()},
        "first_step_seconds": {side: run["first_seconds"] for side, run in found.items()},
    }


def numerics() -> dict[str, Any]:
    """Relative distance of loss and gradient from fp32 on the processor, over packed documents."""
    config = TransformerConfig(4096, 256, 4, 4, 2, 64, 688, ROW)
    batch = batch_of(2, documents=True, seed=7)
    batch.tokens.remainder_(4096)
    batch.targets.remainder_(4096)

    def gradient(device: str, precision: str, *, compiled: bool) -> tuple[float, torch.Tensor]:
        model = Transformer(config, generator=torch.Generator().manual_seed(0)).to(device)
        if compiled:
            model.compile_blocks()
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            terms = NextTokenLoss(model)(batch.to(device))
        (terms.total / batch.total_weight).backward()
        grads = [p.grad.double().cpu().flatten() for p in model.parameters() if p.grad is not None]
        return float(terms.total.detach()) / batch.total_weight, torch.cat(grads)

    exact_loss, exact = gradient("cpu", "fp32", compiled=False)
    found = {}
    for precision in ("fp32", "bf16"):
        for compiled in (False, True):
            loss, grad = gradient("cuda", precision, compiled=compiled)
            found[f"{precision}{' compiled' if compiled else ''}"] = {
                "loss": abs(loss - exact_loss) / exact_loss,
                "gradient": float((grad - exact).norm() / exact.norm()),
            }
    return found


def main() -> None:
    """Measure, print one JSON document, and write it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing is measured")
        return
    import transformers

    report: dict[str, Any] = {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name(0),
        "chatloom": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "command": "python benchmarks/" + " ".join([Path(__file__).name, *sys.argv[1:]]),
        "numerics_against_cpu_fp32": numerics(),
        "results": [],
    }
    for size in options.sizes.split(","):
        peak = measured_matmul_rate(size=8192, device="cuda", dtype=torch.bfloat16)
        torch.cuda.empty_cache()
        report["results"].append(measure(size, SIDES[size], options.repeats, peak))
        print(json.dumps(report["results"][-1]), flush=True)
    print(json.dumps(report, indent=1))
    if options.write:
        options.out.mkdir(parents=True, exist_ok=True)
        target = options.out / f"gpu_pretrain-{report['date']}.json"
        target.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
