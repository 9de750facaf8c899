"""Optimizers with parameter groups, a schedule, and state that survives in safetensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from chatloom.errors import ChatloomError
from chatloom.training.lamb import Lamb
from chatloom.training.muon import Muon
from chatloom.training.parameter_groups import hidden_matrices, matrices_in, split_parameters
from chatloom.training.settings import OptimizerSettings, schedule_of

ADAMW_STATE = ("step", "exp_avg", "exp_avg_sq")


class ScheduledOptimizer:
    """AdamW, LAMB or Muon over named modules, the rate a function of the step alone.

    Matrices decay; norms, biases and embeddings (one row is touched by few tokens) do not. Decoupled weight decay:
    Loshchilov & Hutter 2019. Each module's gradient is clipped by its own norm, so a critic's large gradient does not
    shrink the actor's. `groups` are the parameter groups of all `optimizers`; parameters that are frozen when this is
    made are in none, and take no memory.
    """

    def __init__(self, modules: Mapping[str, nn.Module], settings: Mapping[str, OptimizerSettings], total: int) -> None:
        """total: steps of the run. Raises ChatloomError when nothing is trainable or a schedule does not fit."""
        self.modules, self.settings = dict(modules), dict(settings)
        self.schedules = {label: schedule_of(choice, total) for label, choice in self.settings.items()}
        self.names: dict[Tensor, str] = {}
        self.clipper: Callable[[str, float], Tensor] | None = None  # where no process has a module's whole gradient
        groups: dict[str, list[dict[str, Any]]] = {}
        matrices: dict[nn.Parameter, tuple[int, ...]] = {}
        for label, module in self.modules.items():
            self.names.update({p: f"{label}.{n}" for n, p in module.named_parameters() if p.requires_grad})
            matrices.update(matrices_in(module))
            for name, group in _groups(label, module, self.settings[label]):
                groups.setdefault(name, []).append(group)
        if not self.names:
            raise ChatloomError(f"nothing to train in {', '.join(self.modules)}: every parameter is frozen")
        self.optimizers: list[torch.optim.Optimizer] = []
        if "adamw" in groups:
            fused = next(iter(self.names)).device.type in ("cuda", "cpu")
            self.optimizers.append(torch.optim.AdamW(groups["adamw"], fused=fused))
        if "lamb" in groups:
            self.optimizers.append(Lamb(groups["lamb"], matrices))
        if "muon" in groups:
            self.optimizers.append(Muon(groups["muon"], matrices))

    @property
    def groups(self) -> list[dict[str, Any]]:
        """All parameter groups, as torch's optimizers hold them, with the `label` of their module."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def rate(self, label: str, step: int) -> float:
        """Learning rate of a module at an optimizer step."""
        return self.schedules[label].rate(step)

    def clip(self) -> dict[str, Tensor]:
        """Scale each module's gradient to its largest norm; returns the norms before."""
        norms = {}
        for label, module in self.modules.items():
            limit = self.settings[label].clip
            if self.clipper is not None:
                norms[label] = self.clipper(label, limit)
                continue
            parameters = [p for p in module.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            if limit > 0:
                torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
            norms[label] = norm
        return norms

    def step(self, step: int) -> None:
        """One update with the learning rates of `step`, which counts the updates from 0."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                choice = self.settings[group["label"]]
                group["lr"] = self.rate(group["label"], step)
                if choice.eps_style == "tf" and "eps" in group:
                    done = next((int(s["step"]) for p in group["params"] if (s := optimizer.state.get(p))), 0)
                    # TensorFlow adds epsilon to sqrt(v) before the bias correction: the same as a larger one early on.
                    group["eps"] = choice.eps / math.sqrt(1.0 - choice.betas[1] ** (done + 1))
            optimizer.step()

    def zero_grad(self) -> None:
        """Forget all gradients, also of parameters that another process steps."""
        for parameter in self.names:
            parameter.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """Moments and step counters by parameter name."""
        found = {}
        for optimizer in self.optimizers:
            for parameter, state in optimizer.state.items():
                for key, value in state.items():
                    found[f"{key}.{self.names[parameter]}"] = value.detach()
        return found

    def state_names(self) -> set[str]:
        """Names of all that `tensors` gives once every parameter has been stepped."""
        return {
            f"{key}.{self.names[parameter]}"
            for optimizer in self.optimizers
            for key in _kept(optimizer)
            for group in optimizer.param_groups
            for parameter in group["params"]
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave; a parameter that had no state then has none now."""
        for optimizer in self.optimizers:
            keys = _kept(optimizer)
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                names = {key: f"{key}.{self.names[parameter]}" for key in keys}
                optimizer.state.pop(parameter, None)
                if not any(name in tensors for name in names.values()):
                    continue
                state = optimizer.state[parameter] = {}
                for key, name in names.items():
                    # AdamW's fused kernel wants the step counter, too, on the parameter's device; LAMB reads it here.
                    counter = key == "step" and isinstance(optimizer, Lamb)
                    state[key] = tensors[name].to("cpu" if counter else parameter.device).clone()


def _kept(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """What an optimizer remembers of a parameter."""
    return optimizer.kept if isinstance(optimizer, Lamb | Muon) else ADAMW_STATE


def _groups(label: str, module: nn.Module, choice: OptimizerSettings) -> Iterator[tuple[str, dict[str, Any]]]:
    """(optimizer, parameter group) of a module."""
    decayed, plain = split_parameters(module)
    hidden = hidden_matrices(module) if choice.name == "muon" else []
    if hidden:
        own = {"momentum": choice.momentum, "weight_decay": choice.weight_decay, "lr": choice.lr, "label": label}
        yield "muon", {"params": hidden, **own}
        taken = set(hidden)
        decayed = [p for p in decayed if p not in taken]
    for parameters, decay in ((decayed, choice.weight_decay), (plain, 0.0)):
        if parameters:
            yield (
                "lamb" if choice.name == "lamb" else "adamw",
                {
                    "params": parameters,
                    "weight_decay": decay,
                    "lr": choice.lr,
                    "betas": choice.betas,
                    "eps": choice.eps,
                    "label": label,
                },
            )
