"""What every training stage does around its loss: resume, fit, write the model, keep the last state, sum up metrics."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from chatloom.artifact import fsync_file, is_disk_full, write_json
from chatloom.errors import ChatloomError
from chatloom.model.adapters.lora import drops
from chatloom.model.config import TransformerConfig
from chatloom.model.heads import RewardModel
from chatloom.model.transformer import Transformer
from chatloom.progress import say
from chatloom.stage import Context
from chatloom.training import checkpoints
from chatloom.training.checkpoints import State
from chatloom.training.loop import fit
from chatloom.training.metrics import read_metrics
from chatloom.training.parallel.launch import launched, local_rank
from chatloom.training.saving import Run
from chatloom.training.settings import LoopSettings
from chatloom.training.trainer import Trainer

DONE = "training.json"


def resolve_device(name: str) -> torch.device:
    """A torch device from `auto` (CUDA, then MPS, then CPU) or an explicit name; ChatloomError when it is not there.

    Of several processes on a machine each gets a CUDA device of its own.
    """
    if name in ("auto", "cuda") and launched() and torch.cuda.is_available():
        return torch.device("cuda", local_rank())
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ChatloomError(f"device: `{name}` is no device; use auto, cpu, cuda, cuda:0 or mps") from None
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present.get(device.type, False):
        raise ChatloomError(f"device: `{name}` is not available on this machine; use auto or cpu")
    return device


def noise_seed(model: Transformer | RewardModel, seed: int) -> int | None:
    """The seed of a model's and its adapter's dropout, or None where neither has any."""
    return seed if model.config.dropout or model.config.attention_dropout or drops(model) else None


def wants_compiled(loop: LoopSettings, device: torch.device, config: TransformerConfig) -> bool:
    """Whether to compile; raises ChatloomError where it was asked for and cannot be done.

    That is without Triton, which does it on CUDA, for a mixture of experts, whose shapes depend on the data, for
    tensor parallelism, whose blocks wait for other processes, and for selective recomputation, which has to see every
    operation.
    """
    if loop.compile == "off" or (loop.compile == "auto" and device.type != "cuda"):
        return False
    whole = {
        "a mixture of experts": config.n_experts,
        "loop.parallel.tensor": loop.parallel.tensor > 1,
        "loop.recompute selective": loop.recompute == "selective",
    }
    for what in [what for what, found in whole.items() if found]:
        if loop.compile == "on":
            raise ChatloomError(f"loop.compile is on, and {what} is not compiled; use auto or off")
        return False
    if device.type == "cuda" and find_spec("triton") is None:
        if loop.compile == "on":
            raise ChatloomError("loop.compile is on, and the package triton is not installed; install it or use off")
        say("triton is not installed: blocks run uncompiled, at about half the speed")
        return False
    return True


def train(
    context: Context,
    trainer: Trainer,
    total: int,
    unit: Callable[[int], dict[str, float]],
    *,
    loop: LoopSettings,
    kind: str,
    noun: str = "steps",
    write_model: Callable[[Path], None],
    load_model: Callable[[Path], None],
    extra_state: Callable[[], State] = lambda: State({}, {}),
    load_extra: Callable[[State], None] = lambda _: None,
    finish: Callable[[], dict[str, Any]] = dict,
    anchor_every: int = 0,
) -> list[dict[str, Any]]:
    """Run `unit` for `total` steps with resume; write model and last state into the stage's folder; return the metrics.

    `finish` may still change the model after the last step (a reward model's normalisation) and returns metrics. When a
    kill fell between the end of training and the stage's commit, the finished model is loaded instead.
    """
    run = Run(
        path=context.path,
        kind=kind,
        identity=dict(context.identity),
        loop=loop,
        write_model=write_model,
        load_model=load_model,
        extra_state=extra_state,
        load_extra=load_extra,
        anchor_every=anchor_every,
        quiet=context.quiet,
    )
    _recompute(trainer, loop)
    done = context.path / DONE
    if done.is_file():
        go_on_alone(trainer)
        run.load(trainer, context.path)
    else:
        with _advice_on_memory():
            kept = fit(run, trainer, total, unit, label=context.name, noun=noun).kept
        own = go_on_alone(trainer)
        last = finish()
        _write_result(run, own)
        for file in context.path.rglob("*.safetensors"):
            fsync_file(file)  # `done` says that they are whole, also after the power has gone, and checkpoints go now
        write_json(
            done,
            {
                "total": total,
                "skipped": trainer.skipped,
                "rollbacks": len(trainer.rolled_back_to),
                "checkpoints": sorted(kept),
                "metrics": last,
            },
        )
    ending = json.loads(done.read_text(encoding="utf-8"))
    checkpoints.clear(context.path, besides=ending["checkpoints"])
    rows = read_metrics(context.path / "metrics.jsonl").rows
    context.metrics.update(summarise(rows))
    context.metrics.update(skipped_steps=ending["skipped"], rollbacks=ending["rollbacks"], **ending["metrics"])
    return rows


@contextlib.contextmanager
def _advice_on_memory() -> Iterator[None]:
    """Used-up memory ends in a sentence that says what takes less."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's own error for a device is a RuntimeError, too
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        reason = str(error).strip().partition("\n")[0] or "out of memory"
        raise ChatloomError(
            f"a step needs more memory than there is ({reason}). What was saved is intact: lower "
            "loop.micro_batch_tokens, or set loop.recompute to block, and run the same command to go on; neither "
            "changes the result beyond rounding"
        ) from error


def go_on_alone(trainer: Trainer) -> State:
    """The last state of a trainer whose other processes are let go; its modules are whole from now on."""
    trainer.team.tell("end")
    state = trainer.state()
    trainer.team.release()
    return state


def _recompute(trainer: Trainer, loop: LoopSettings) -> None:
    """Have every trained decoder keep less for its backward pass, as `loop.recompute` says."""
    if loop.recompute == "none":
        return
    for module in trainer.modules.values():
        for part in module.modules():
            if isinstance(part, Transformer):
                part.recompute_blocks(loop.recompute, hooked=trainer.team.sharded)


def _write_result(run: Run, own: State) -> None:
    """Model and last state; where the disk is full, once more after all checkpoints but the newest have gone."""
    try:
        run.write_model(run.path)
        checkpoints.write_state(run.path, run.state(own, {}))
    except checkpoints.UNWRITABLE as error:
        if not is_disk_full(error) or len(checkpoints.steps(run.path)) < 2:
            raise
        checkpoints.prune(run.path, 1)
        run.write_model(run.path)
        checkpoints.write_state(run.path, run.state(own, {}))


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Steps, tokens, seconds, median tokens/s and the last loss of a run's metrics rows."""
    rates = sorted(row["tokens_per_second"] for row in rows if row.get("tokens_per_second"))
    summary: dict[str, Any] = {"steps": len(rows), "train_seconds": round(sum(row["seconds"] for row in rows), 3)}
    if rates:
        summary["tokens"] = int(sum(row.get("tokens") or 0 for row in rows))
        summary["tokens_per_second"] = round(rates[len(rates) // 2], 1)
    losses = [row["loss"] for row in rows if row.get("loss") is not None]
    if losses:
        summary["first_loss"], summary["last_loss"] = losses[0], losses[-1]
    return summary


def n_parameters(modules: Mapping[str, nn.Module]) -> int:
    """Distinct trainable numbers in some modules."""
    return sum(p.numel() for p in {id(p): p for m in modules.values() for p in m.parameters()}.values())
