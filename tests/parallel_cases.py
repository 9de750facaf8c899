"""What the processes of one run do for tests, and how far it is from what one process does.

    parallel_cases.py FOLDER CASE...     run as one of several processes; writes FOLDER/rank-N.json

Every case trains the same model for the same steps twice: by one plain process, and spread over all of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))

from chatloom.model import weight_files
from chatloom.model.config import TransformerConfig
from chatloom.model.heads import RewardModel
from chatloom.model.transformer import Transformer
from chatloom.objectives.preference import PreferenceLoss
from chatloom.stages.dpo import DpoLoss
from chatloom.stages.reward import RankingLoss, RewardSettings
from chatloom.tokens.packing import Batch, Segment, pack
from chatloom.training.loop import fit
from chatloom.training.next_token_loss import NextTokenLoss
from chatloom.training.optimizers import ScheduledOptimizer
from chatloom.training.parallel.gradients import local
from chatloom.training.parallel.settings import ParallelSettings
from chatloom.training.parallel.shares import item_shares
from chatloom.training.parallel.team import Released, Team
from chatloom.training.parallel.world import disconnect
from chatloom.training.saving import Run
from chatloom.training.session import go_on_alone
from chatloom.training.settings import LoopSettings, OptimizerSettings
from chatloom.training.trainer import Trainer

CONFIG = TransformerConfig(
    vocab_size=61, hidden_size=32, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=8, intermediate_size=48,
    max_positions=40, initializer_range=0.3,
)  # fmt: skip
ROW, PAD, STEPS, GROUPS = 40, 0, 3, 10
OPTIMIZER = OptimizerSettings(lr=1e-2, clip=0.5, eps=1e-3)  # clipped at every step; no step that only rounding decides
CPU = torch.device("cpu")


def groups(step: int) -> list[list[Segment]]:
    """Pairs of answers to ten prompts, of very unequal lengths; the prompt carries no loss."""
    draw = np.random.default_rng(step)
    found = []
    for number in range(GROUPS):
        answers = []
        for rank in range(2):
            length = int(draw.integers(5, 24))
            supervised = np.ones(length, dtype=np.float32)
            supervised[:3] = 0.0
            scalars = {"reference": -10.0 - number - rank}
            answers.append(Segment(draw.integers(1, 61, length), supervised, number, f"rank{rank}", scalars))
        found.append(answers)
    return found


def micro_batches(chosen: Sequence[list[Segment]], at_once: int) -> list[Batch]:
    """Some groups at a time."""
    parts = [chosen[start : start + at_once] for start in range(0, len(chosen), at_once)]
    return [pack([segment for group in part for segment in group], ROW, PAD) for part in parts]


def language(config: TransformerConfig) -> tuple[nn.Module, Any]:
    model = Transformer(config, generator=torch.Generator().manual_seed(0))
    return model, NextTokenLoss(model)


def ranking(config: TransformerConfig) -> tuple[nn.Module, Any]:
    body = Transformer(config, generator=torch.Generator().manual_seed(0))
    model = RewardModel(body, generator=torch.Generator().manual_seed(1))
    return model, RankingLoss(model, RewardSettings(label_smoothing=0.1, lm_weight=0.3 if config.tie_embeddings else 0))


def preference(config: TransformerConfig) -> tuple[nn.Module, Any]:
    model = Transformer(config, generator=torch.Generator().manual_seed(0))
    return model, DpoLoss(model, PreferenceLoss("sigmoid", 0.1, 0.0, 0.2))


class Watched:
    """An objective that notes how many bytes of weights lie here between forward and backward."""

    def __init__(self, module: nn.Module, objective: Any) -> None:
        self.module, self.objective, self.most = module, objective, 0

    def weight(self, batch: Batch) -> float:
        return float(self.objective.weight(batch))

    def __call__(self, batch: Batch) -> Any:
        terms = self.objective(batch)
        self.most = max(self.most, size(self.module.parameters()))
        return terms


def steps_of(
    team: Team, make: Callable[[TransformerConfig], tuple[nn.Module, Any]], config: TransformerConfig, how: str = ""
) -> dict[str, Any]:
    """Train; on the first process: losses, norms, the first gradient, final weights and moments, all whole."""
    module, objective = make(config)
    if isinstance(objective, NextTokenLoss):
        objective.reduce = team.reduce
    team.spread({"m": module}, CPU)
    if how:
        getattr(module, "body", module).recompute_blocks(how, hooked=team.sharded)
    optimizer = ScheduledOptimizer({"m": module}, {"m": OPTIMIZER}, 10)
    trainer = Trainer({"m": module}, optimizer, team=team)
    found: dict[str, Any] = {"losses": [], "norms": []}
    for step in range(STEPS):
        everything = groups(step)
        sizes = [sum(len(segment) for segment in group) for group in everything]
        mine = item_shares(sizes, team.world.data.size)[team.world.data.place]
        # Not as many micro-batches on every process.
        batches = micro_batches([everything[i] for i in mine], 2 + team.world.data.place)
        watched = Watched(module, objective) if not config.n_experts else objective
        metrics = trainer.update(batches, watched)
        found["losses"].append(metrics["loss"])
        found["norms"].append(metrics["grad_norm"])
        found["metrics"] = metrics
        if step == 0:  # clipped, but by the same factor everywhere
            gradients = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
            found["gradient"] = team.spreads["m"].whole(gradients) if team.spreads else dict(gradients)
            found["gradient"] = {name: value.clone() for name, value in found["gradient"].items()}
            found["bytes"] = {"gradients": size(gradients.values()), "weights in use": getattr(watched, "most", 0)}
    found["bytes"]["weights"] = size(module.parameters())
    moments = optimizer.tensors()
    found["bytes"]["optimizer"] = size(value for name, value in moments.items() if "exp_avg" in name)
    found["moments"] = {name: value.clone() for name, value in trainer.state().tensors["optimizer"].items()}
    whole = team.spreads["m"].gathered() if team.spreads else module
    state = whole.state_dict() if whole is not None else {}
    found["weights"] = {name: value.clone() for name, value in state.items()}
    found["module"], found["optimizer"] = module, optimizer
    return found


def size(tensors: Any) -> int:
    """Bytes that this process holds of some tensors."""
    return sum(local(tensor.detach()).numel() * tensor.element_size() for tensor in tensors)


def apart(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Relative distance of two sets of tensors, which must have the same names and shapes."""
    assert found.keys() == expected.keys(), sorted(found.keys() ^ expected.keys())
    assert all(found[name].shape == expected[name].shape for name in expected)
    names = sorted(expected)
    a, b = (torch.cat([group[name].detach().double().flatten() for name in names]) for group in (found, expected))
    return float((a - b).norm() / b.norm())


def compared(
    settings: dict[str, Any],
    make: Callable[[TransformerConfig], tuple[nn.Module, Any]] = language,
    recompute: str = "",
    **changes: Any,
) -> dict[str, Any]:
    """Relative distances on the first process, and bytes held on each."""
    config = replace(CONFIG, **changes)
    team = Team.of(ParallelSettings(**settings, timeout=20), CPU)
    found = steps_of(team, make, config, recompute)
    result: dict[str, Any] = {"bytes": found["bytes"], "losses": found["losses"]}
    # What was gathered fills a model of other weights, and an optimizer without a state, as a resumed run does.
    weights = team.world.first(found["weights"])
    moments = team.world.first(found["moments"])
    before = {name: local(value.detach()).clone() for name, value in found["module"].named_parameters()}
    for parameter in found["module"].parameters():
        local(parameter.detach()).zero_()
    team.spreads["m"].fill(weights)
    after = {name: local(value.detach()) for name, value in found["module"].named_parameters()}
    result["filled"] = all(torch.equal(before[name], after[name]) for name in before)
    state, again = found["optimizer"].tensors(), team.part_state(moments)
    result["state filled"] = state.keys() == again.keys() and all(
        torch.equal(local(state[name]), local(again[name])) for name in state
    )
    if team.world.leads:
        alone = steps_of(Team(), make, config)
        assert found["metrics"].keys() == alone["metrics"].keys()
        result["metrics"] = max(abs(found["metrics"][k] - v) / max(abs(v), 1e-3) for k, v in alone["metrics"].items())
        result["loss"] = max(abs(a - b) / abs(b) for a, b in zip(found["losses"], alone["losses"], strict=True))
        result["norm"] = max(abs(a - b) / abs(b) for a, b in zip(found["norms"], alone["norms"], strict=True))
        for name in ("gradient", "weights", "moments"):
            result[name] = apart(found[name], alone[name])
        result["whole bytes"] = alone["bytes"]
    team.spreads["m"].restore(CPU)
    if team.world.leads:
        result["restored"] = apart(found["module"].state_dict(), weights)
        result["kind"] = type(found["module"]).__name__
        objective = make(config)[1]
        batch = micro_batches(groups(0), GROUPS)[0]
        objective.model = found["module"]
        with torch.no_grad():
            result["restored loss"] = float(objective(batch).total)
    return result


class Poisoned:
    """A language-model loss that is no number at some steps, on the last process alone."""

    def __init__(self, model: nn.Module, rank: int) -> None:
        self.loss, self.rank, self.step = NextTokenLoss(model), rank, 0  # type: ignore[arg-type]

    def weight(self, batch: Batch) -> float:
        return batch.total_weight

    def __call__(self, batch: Batch) -> Any:
        terms = self.loss(batch)
        if self.rank == 1 and self.step in (6, 7, 8):
            terms.total = terms.total * float("nan")
        return terms


def gone_back() -> dict[str, Any]:
    """A run of `fit` whose loss is no number for three steps, and what each process then thinks of the step count."""
    team = Team.of(ParallelSettings(data="zero1", timeout=20), CPU)
    folder = Path(sys.argv[1]) / f"gone-back-{team.world.rank}"
    folder.mkdir()
    module, _ = language(CONFIG)
    team.spread({"m": module}, CPU)
    optimizer = ScheduledOptimizer({"m": module}, {"m": OPTIMIZER}, 20)
    trainer = Trainer({"m": module}, optimizer, rollbacks=1, rollback_after=3, team=team)
    objective = Poisoned(module, team.world.rank)
    seen: list[list[float]] = []

    def unit(index: int) -> dict[str, float]:
        objective.step = index
        metrics = trainer.update(micro_batches(groups(index)[team.world.rank :: 2], 2), objective)
        seen.append([index, trainer.updates, metrics.get("lr", 0.0), metrics.get("loss", 0.0)])
        return metrics

    run = Run(
        path=folder,
        kind="model",
        identity={"seed": 1},
        loop=LoopSettings(checkpoint_seconds=1e6),
        write_model=lambda target: weight_files.write(target / "m.safetensors", module.state_dict()),
        load_model=lambda source: module.load_state_dict(load_file(source / "m.safetensors")) and None,
        anchor_every=4,
        quiet=True,
    )
    with contextlib.suppress(Released):
        fit(run, trainer, 12, unit, label="toy", noun="steps")
        go_on_alone(trainer)
    return {"seen": seen, "rolled back to": trainer.rolled_back_to, "skipped": trainer.skipped}


CASES: dict[str, Callable[[], Any]] = {
    "replicate": lambda: compared({"data": "replicate"}),
    "replicate ranking": lambda: compared({"data": "replicate"}, ranking),
    "zero1": lambda: compared({"data": "zero1"}),
    "gone back": gone_back,
    "zero2": lambda: compared({"data": "zero2"}),
    "zero3": lambda: compared({"data": "zero3"}),
    "zero2 recompute": lambda: compared({"data": "zero2"}, recompute="selective"),
    "zero3 recompute": lambda: compared({"data": "zero3"}, recompute="block"),
    "replicate experts": lambda: compared({"data": "replicate"}, n_experts=4, router_balance=0.1),
    "zero3 experts": lambda: compared({"data": "zero3"}, n_experts=4, router_balance=0.1),
    "tensor recompute": lambda: compared({"tensor": 2}, recompute="block"),
    "zero3 untied": lambda: compared({"data": "zero3"}, tie_embeddings=False),
    "zero3 ranking": lambda: compared({"data": "zero3"}, ranking),
    "zero3 preference": lambda: compared({"data": "zero3"}, preference),
    "tensor": lambda: compared({"tensor": 2}),
    "tensor preference": lambda: compared({"tensor": 2}, preference, qkv_bias=True, output_bias=True, qk_norm=True),
    "tensor ranking": lambda: compared({"tensor": 2}, ranking),
    "gpipe": lambda: compared({"pipeline": 2, "schedule": "gpipe"}),
    "1f1b": lambda: compared({"pipeline": 2, "schedule": "1f1b"}),
    "pipeline untied": lambda: compared({"pipeline": 2}, tie_embeddings=False),
    "pipeline ranking": lambda: compared({"pipeline": 2}, ranking),
    "pipeline preference": lambda: compared({"pipeline": 2}, preference),
    "replicate x tensor": lambda: compared({"tensor": 2}),
    "zero1 x tensor": lambda: compared({"data": "zero1", "tensor": 2}),
    "zero3 x tensor": lambda: compared({"data": "zero3", "tensor": 2}),
    "replicate x pipeline": lambda: compared({"pipeline": 2}),
    "zero1 x pipeline": lambda: compared({"data": "zero1", "pipeline": 2, "schedule": "gpipe"}),
    "tensor x pipeline": lambda: compared({"tensor": 2, "pipeline": 2}),
    "zero1 x tensor x pipeline": lambda: compared({"data": "zero1", "tensor": 2, "pipeline": 2}),
}


def main() -> None:
    """Run the cases that were asked for."""
    folder, cases = Path(sys.argv[1]), sys.argv[2:]
    found = {case: CASES[case]() for case in cases}
    file = folder / f"rank-{os.environ['RANK']}.json"
    file.with_suffix(".tmp").write_text(json.dumps(found), encoding="utf-8")
    os.replace(file.with_suffix(".tmp"), file)
    disconnect()


if __name__ == "__main__":
    main()
