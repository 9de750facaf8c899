"""What each process holds of a model in training, by way of sharing it out: bytes of weights, gradients, optimizer.

Processes of this machine over gloo train a few steps of a model with random data; what is counted is what their tensors
take, not activations. `weights in use` are counted between forward and backward of the last micro-batch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Report, arguments

from chatloom.model.config import TransformerConfig
from chatloom.model.transformer import Transformer
from chatloom.tokens.packing import Batch, Segment, pack
from chatloom.training.next_token_loss import NextTokenLoss
from chatloom.training.optimizers import ScheduledOptimizer
from chatloom.training.parallel.gradients import local
from chatloom.training.parallel.settings import ParallelSettings
from chatloom.training.parallel.team import Team
from chatloom.training.parallel.world import disconnect
from chatloom.training.settings import OptimizerSettings
from chatloom.training.trainer import Terms, Trainer

CONFIG = TransformerConfig(
    vocab_size=8192, hidden_size=256, n_layers=8, n_heads=8, n_kv_heads=4, head_dim=32, intermediate_size=704,
    max_positions=128,
)  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "replicate": {}, "zero1": {"data": "zero1"}, "zero2": {"data": "zero2"}, "zero3": {"data": "zero3"},
    "tensor": {"tensor": 2}, "pipeline": {"pipeline": 2},
    "zero3 x tensor": {"data": "zero3", "tensor": 2}, "zero1 x pipeline": {"data": "zero1", "pipeline": 2},
}  # fmt: skip
STEPS = 2


def held(tensors: Any) -> int:
    """Bytes of what lies in this process."""
    return sum(local(tensor.detach()).numel() * tensor.element_size() for tensor in tensors)


class Watched(NextTokenLoss):
    """Notes the weights that lie here when the loss is known."""

    in_use = 0

    def __call__(self, batch: Batch) -> Terms:
        terms = super().__call__(batch)
        self.in_use = max(self.in_use, held(self.model.parameters()))
        return terms


def measured(way: dict[str, Any]) -> dict[str, int]:
    """Bytes that this process holds after some steps."""
    team = Team.of(ParallelSettings(**way), torch.device("cpu"))
    model = Transformer(CONFIG, generator=torch.Generator().manual_seed(0))
    team.spread({"model": model}, torch.device("cpu"))
    optimizer = ScheduledOptimizer({"model": model}, {"model": OptimizerSettings()}, STEPS)
    trainer, loss = Trainer({"model": model}, optimizer, team=team), Watched(model)
    draw = np.random.default_rng(team.world.data.place)
    gradients = 0
    for _ in range(STEPS):
        batches = [pack([Segment(draw.integers(0, 8192, 128), np.ones(128))], 128, 0) for _ in range(2)]
        trainer.update(batches, loss)
        gradients = held(p.grad for p in model.parameters() if p.grad is not None)
    moments = held(value for name, value in optimizer.tensors().items() if value.dim())
    weights = held(model.parameters())
    return {
        "weights": weights,
        "weights in use": max(weights, loss.in_use),
        "gradients": gradients,
        "optimizer": moments,
        "in all": max(weights, loss.in_use) + gradients + moments,
    }


def in_processes(n: int, way: str) -> list[dict[str, int]]:
    """What each of n processes measured."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n), "--standalone"]
        subprocess.run(
            [*command, __file__, "--child", folder, way], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(n)]


def main() -> None:
    """The table, of the process that holds most."""
    options, report, rows = arguments(__doc__ or "").parse_args(), Report("torch"), []
    for n in (1, 2, 4):
        for name, way in WAYS.items() if n > 1 else [("replicate", WAYS["replicate"])]:
            wanted = way.get("tensor", 1) * way.get("pipeline", 1)
            if (" x " in name) != (n == 4 and wanted > 1):
                continue
            found = in_processes(n, name)
            most = {key: max(one[key] for one in found) for key in found[0]}
            rows.append({"processes": n, "way": name, **{key: round(value / 1e6, 1) for key, value in most.items()}})
    report.finish({"parameters": CONFIG.n_parameters(), "unit": "MB of the process with most", "rows": rows}, options)


if __name__ == "__main__":
    if "--child" in sys.argv:
        target, chosen = sys.argv[2:4]
        file = Path(target) / f"{os.environ['RANK']}.json"
        file.write_text(json.dumps(measured(WAYS[chosen])))
        disconnect()
    else:
        main()
