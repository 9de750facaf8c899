"""What recomputing activations saves and costs: nothing, all but products and attention, whole blocks.

    python benchmarks/recompute.py [--tokens 16384] [--width 768] [--layers 12] [--repeats 5] [--write]

Needs CUDA, where the peak of a step's memory can be measured. Steps of a decoder with rows of 1,024 tokens (vocabulary
32,768) in bf16; blocks are compiled, but for `selective`, and `none, uncompiled` stands beside it.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import torch
from measure import Report, arguments, not_possible

from chatloom.model.config import TransformerConfig
from chatloom.model.transformer import Transformer
from chatloom.tokens.packing import Segment, pack
from chatloom.training.next_token_loss import NextTokenLoss
from chatloom.training.optimizers import ScheduledOptimizer
from chatloom.training.settings import OptimizerSettings
from chatloom.training.trainer import Trainer

VOCAB, ROW = 32768, 1024
SIDES: dict[str, tuple[Any, bool]] = {
    "none": ("none", True),
    "block": ("block", True),
    "none, uncompiled": ("none", False),
    "selective": ("selective", False),
    "block, uncompiled": ("block", False),
}


def main() -> None:
    """Measure, print one JSON document, and write it if asked to."""
    parser = arguments(__doc__ or "", repeats=5)
    parser.add_argument("--tokens", type=int, default=16384, help="of one step, one micro-batch")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        not_possible("there is no CUDA device")
    report, device = Report("torch"), torch.device("cuda")
    config = TransformerConfig(
        vocab_size=VOCAB, hidden_size=options.width, n_layers=options.layers, n_heads=options.width // 64,
        n_kv_heads=options.width // 64, head_dim=64, intermediate_size=options.width * 8 // 3, max_positions=ROW,
    )  # fmt: skip
    draw = np.random.default_rng(0)
    lengths = [ROW // 2] * (2 * options.tokens // ROW)  # two documents a row
    batch = pack([Segment(draw.integers(0, VOCAB, n), np.ones(n, dtype=np.float32)) for n in lengths], ROW, 0)
    batch = batch.to(device)
    results, losses = {}, set()
    for name, (how, compiled) in SIDES.items():
        results[name], loss = side(config, batch, how, compiled, options.repeats, device)
        losses.add((compiled, loss))
    equal = {name: len({loss for c, loss in losses if c == kind}) == 1 for name, kind in (("compiled", 1), ("not", 0))}
    about = {"parameters": config.n_parameters(), "tokens": options.tokens, "threads": torch.get_num_threads()}
    report.finish({**about, "device": str(device), "losses_equal": equal, "results": results}, options)


def side(
    config: TransformerConfig, batch: Any, how: Any, compiled: bool, repeats: int, device: torch.device
) -> tuple[dict[str, Any], float]:
    """Seconds and peak memory of a step, and the loss of the last."""
    model = Transformer(config, generator=torch.Generator().manual_seed(0)).to(device)
    if compiled:
        model.compile_blocks()
    model.recompute_blocks(how)
    optimizer = ScheduledOptimizer({"model": model}, {"model": OptimizerSettings(lr=1e-4, warmup=0)}, 1000)
    trainer, loss = Trainer({"model": model}, optimizer, precision="bf16"), NextTokenLoss(model)
    seconds = []
    for repeat in range(repeats + 2):
        if repeat == 2:
            torch.cuda.reset_peak_memory_stats()
        begun = time.perf_counter()
        metrics = trainer.update([batch], loss)
        seconds.append(time.perf_counter() - begun)
    peak = torch.cuda.max_memory_allocated()
    del model, optimizer, trainer, loss
    torch.cuda.empty_cache()
    return {"step_seconds": round(statistics.median(seconds[2:]), 4), "peak_bytes": peak}, metrics["loss"]


if __name__ == "__main__":
    main()
