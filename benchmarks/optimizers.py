"""What an optimizer's update costs: AdamW, LAMB and Muon on one model, in turn.

    python benchmarks/optimizers.py [--device cpu] [--tokens 2048] [--repeats 5] [--write]

A model of 10 million parameters (vocabulary 8,192), gradients as they are after one backward pass. `update` is the
optimizer alone; `step` is forward, backward, clipping and update on that many tokens, in rows of 512. The share of the
update falls with the tokens of a step, on which it does not depend. States are counted in bytes.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from measure import Report, arguments, in_turn

from chatloom.model.config import TransformerConfig
from chatloom.model.transformer import Transformer
from chatloom.tokens.packing import Batch, Segment, pack
from chatloom.training.next_token_loss import NextTokenLoss
from chatloom.training.optimizers import ScheduledOptimizer
from chatloom.training.settings import OptimizerSettings
from chatloom.training.trainer import Trainer

VOCAB, ROW = 8192, 512
CONFIG = TransformerConfig(
    vocab_size=VOCAB, hidden_size=320, n_layers=6, n_heads=5, n_kv_heads=5, head_dim=64, intermediate_size=856,
    max_positions=ROW,
)  # fmt: skip
NAMES = ("adamw", "lamb", "muon")


def main() -> None:
    """Measure, print one JSON document, and write it if asked to."""
    parser = arguments(__doc__ or "", repeats=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=2048, help="of one step")
    options = parser.parse_args()
    report = Report("torch")
    device = torch.device(options.device)
    batch = batch_of(options.tokens).to(device)
    sides = {name: Side(name, device, batch) for name in NAMES}
    updates = in_turn({name: side.update for name, side in sides.items()}, options.repeats)
    steps = in_turn({name: partial(side.step, batch) for name, side in sides.items()}, options.repeats)
    results = {
        name: {
            "update_seconds": updates[name].seconds(),
            "step_seconds": steps[name].seconds(),
            "state_bytes_a_parameter": round(side.state_bytes() / side.n_parameters, 2),
        }
        for name, side in sides.items()
    }
    about = {"parameters": sides["adamw"].n_parameters, "tokens": options.tokens, "threads": torch.get_num_threads()}
    report.finish({**about, "device": str(device), "results": results}, options)


class Side:
    """A model and its optimizer, after one step."""

    def __init__(self, name: str, device: torch.device, batch: Batch) -> None:
        self.device = device
        self.model = Transformer(CONFIG, generator=torch.Generator().manual_seed(0)).to(device)
        settings = {"model": OptimizerSettings(name=name, lr=1e-3, warmup=0)}  # type: ignore[arg-type]
        self.optimizer = ScheduledOptimizer({"model": self.model}, settings, 1000)
        precision = "bf16" if device.type == "cuda" else "fp32"
        self.trainer = Trainer({"model": self.model}, self.optimizer, precision=precision)
        self.loss = NextTokenLoss(self.model)
        self.step(batch)

    def update(self) -> None:
        """The optimizer's part, with the gradients that are there."""
        self.optimizer.step(1)
        self.wait()

    def step(self, batch: Batch) -> None:
        """A whole step."""
        self.trainer.update([batch], self.loss)
        self.wait()

    def wait(self) -> None:
        """Until the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    @property
    def n_parameters(self) -> int:
        """Of the model."""
        return sum(p.numel() for p in self.model.parameters())

    def state_bytes(self) -> int:
        """Of moments, momentum and counters."""
        return sum(value.nbytes for value in self.optimizer.tensors().values())


def batch_of(tokens: int) -> Batch:
    """Rows of random tokens, one segment each."""
    draw = np.random.default_rng(0)
    segments = [Segment(draw.integers(6, VOCAB, ROW), np.ones(ROW, dtype=np.float32)) for _ in range(tokens // ROW)]
    return pack(segments, ROW, 0)


if __name__ == "__main__":
    main()
