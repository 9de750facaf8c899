"""AdamW with parameter groups, a schedule, and state that survives in safetensors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from chatloom.training.schedules import learning_rate
from chatloom.training.settings import OptimizerSettings


class ScheduledOptimizer:
    """AdamW over named modules, its rate a function of the step alone.

    Matrices decay; norms, biases and embeddings (one row is touched by few tokens) do not. Decoupled weight decay:
    Loshchilov & Hutter 2019. Each module's gradient is clipped by its own norm, so a critic's large gradient does not
    shrink the actor's.
    """

    def __init__(self, modules: Mapping[str, nn.Module], settings: Mapping[str, OptimizerSettings], total: int) -> None:
        self.modules, self.settings, self.total = dict(modules), dict(settings), total
        self.names: dict[Tensor, str] = {}
        groups = []
        for label, module in self.modules.items():
            decayed, plain = split_parameters(module)
            choice = self.settings[label]
            self.names.update({p: f"{label}.{n}" for n, p in module.named_parameters() if p.requires_grad})
            for parameters, decay in ((decayed, choice.weight_decay), (plain, 0.0)):
                if parameters:
                    groups.append(
                        {
                            "params": parameters,
                            "weight_decay": decay,
                            "lr": choice.lr,
                            "betas": choice.betas,
                            "eps": choice.eps,
                            "label": label,
                        }
                    )
        fused = next(iter(self.names)).device.type in ("cuda", "cpu")
        self.optimizer = torch.optim.AdamW(groups, fused=fused)

    def rate(self, label: str, step: int) -> float:
        """Learning rate of a module at an optimizer step."""
        choice = self.settings[label]
        return learning_rate(
            step,
            peak=choice.lr,
            total=self.total,
            warmup=round(choice.warmup * self.total),
            final_share=choice.final_share,
            shape=choice.schedule,
        )

    def clip(self) -> dict[str, Tensor]:
        """Scale each module's gradient to its largest norm; returns the norms before."""
        norms = {}
        for label, module in self.modules.items():
            parameters = [p for p in module.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            limit = self.settings[label].clip
            if limit > 0:
                torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
            norms[label] = norm
        return norms

    def step(self, step: int) -> None:
        """One update with the learning rates of `step`, which counts the updates from 0."""
        states = self.optimizer.state
        for group in self.optimizer.param_groups:
            choice = self.settings[group["label"]]
            group["lr"] = self.rate(group["label"], step)
            if choice.eps_style == "tf":
                done = int(next(iter(states.values()))["step"]) if states else 0
                # TensorFlow adds epsilon to sqrt(v) before the bias correction: the same as a larger epsilon early on.
                group["eps"] = choice.eps / math.sqrt(1.0 - choice.betas[1] ** (done + 1))
        self.optimizer.step()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """Moments and step counters by parameter name."""
        found = {}
        for parameter, state in self.optimizer.state.items():
            for key, value in state.items():
                found[f"{key}.{self.names[parameter]}"] = value.detach().cpu().contiguous()
        return found

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave; a parameter without state stays fresh."""
        for parameter, name in self.names.items():
            state = {
                key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in tensors
            }
            if state:
                # The fused kernel wants the step counter, too, on the parameter's device.
                self.optimizer.state[parameter] = {
                    key: value.to(parameter.device).clone() for key, value in state.items()
                }


def split_parameters(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters that decay (matrices of linear layers) and that do not (norms, biases, embeddings)."""
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim >= 2 and id(parameter) not in embeddings
            (decayed if matrix else plain).append(parameter)
    return decayed, plain
