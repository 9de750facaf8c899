"""A run of the training loop without a stage around it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from chatloom.model import weight_files
from chatloom.training.checkpoints import State
from chatloom.training.loop import Ending, fit
from chatloom.training.optimizers import ScheduledOptimizer
from chatloom.training.saving import Run
from chatloom.training.settings import LoopSettings, OptimizerSettings
from chatloom.training.trainer import Trainer


class Toy:
    """A run whose unit adds one to a number, which is its only state beside the module."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.module = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(self.module.weight)
        optimizer = ScheduledOptimizer({"m": self.module}, {"m": OptimizerSettings()}, 10)
        self.trainer = Trainer({"m": self.module}, optimizer)
        self.number = 0
        self.units: list[int] = []
        self.stop_at = self.signal_at = -1
        self.run = Run(
            path=path,
            kind="model",
            identity={"seed": 1},
            loop=LoopSettings(**{"checkpoint_seconds": 1e6, **settings}),
            write_model=lambda folder: weight_files.write(folder / "m.safetensors", {"w": self.module.weight}),
            load_model=lambda folder: (
                self.module.load_state_dict({"weight": load_file(folder / "m.safetensors")["w"]}) and None
            ),
            extra_state=lambda: State({"number": self.number}, {}),
            load_extra=self.load,
            quiet=True,
        )
        path.mkdir(exist_ok=True)

    def load(self, state: State) -> None:
        self.number = state.values["number"]

    def unit(self, index: int) -> dict[str, float]:
        self.units.append(index)
        self.number += 1
        with torch.no_grad():
            self.module.weight.add_(1.0)
        if index == self.signal_at:
            os.kill(os.getpid(), signal.SIGINT)
        return {"loss": 1.0 / (index + 1), "tokens": 10.0, "stop": float(index == self.stop_at)}

    def fit(self, total: int = 6) -> Ending:
        return fit(self.run, self.trainer, total, self.unit, label="toy", noun="steps")
