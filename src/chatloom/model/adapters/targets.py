"""Which rows of which of our matrices a Hugging Face module name means.

Our matrices are fused (`attention.qkv` is q_proj, k_proj and v_proj stacked), so an adapter of q_proj acts on some rows
of one of ours. `layout` of the Hugging Face folder is the only place that knows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from chatloom.errors import ChatloomError
from chatloom.model.adapters.specs import ALL_LINEAR
from chatloom.model.heads import RewardModel
from chatloom.model.layouts import layout
from chatloom.model.transformer import Transformer
from chatloom.settings import nearest

Network = Transformer | RewardModel

OUTPUT = "lm_head"  # what `all-linear` leaves out, as PEFT does


@dataclass(frozen=True)
class Rows:
    """One linear layer of Hugging Face's: rows `start` to `stop` of our module `module`; `name` is theirs."""

    name: str
    module: str
    start: int
    stop: int

    @property
    def key(self) -> str:
        """Last part of the name: what tells it from its neighbours in the same matrix."""
        return self.name.rpartition(".")[2]


def linear_layers(network: Network) -> list[Rows]:
    """Every linear layer of a Hugging Face model that may be adapted, in order, as rows of ours.

    A reward model's `score` is none of them: beside an adapter it is trained as it is. Neither are a mixture's router
    and its experts, which are no layers of their own in `transformers` either.
    """
    found = []
    for parameter, pieces in layout(network.config, kind_of(network)).items():
        module = parameter.removesuffix(".weight")
        if module in (parameter, "score") or module.endswith("router"):
            continue
        if not isinstance(network.get_submodule(module), nn.Linear):
            continue
        start = 0
        for piece in pieces:
            stop = start + piece.shape[1 if piece.transposed else 0]
            found.append(Rows(piece.name.removesuffix(".weight"), module, start, stop))
            start = stop
    return found


def kind_of(network: Network) -> str:
    """`language` or `reward`, as `layout` calls them."""
    return "reward" if isinstance(network, RewardModel) else "language"


def chosen(network: Network, targets: Sequence[str]) -> list[Rows]:
    """The linear layers that `targets` name: a whole name, its end after a dot, or all by `all-linear`.

    Raises ChatloomError for a target that matches nothing.
    """
    layers = linear_layers(network)
    if list(targets) == [ALL_LINEAR]:
        return [item for item in layers if item.key != OUTPUT]
    for target in targets:
        if not any(matches(item.name, target) for item in layers):
            raise ChatloomError(_nothing(target, layers, network))
    return [item for item in layers if any(matches(item.name, target) for target in targets)]


def matches(name: str, target: str) -> bool:
    """Whether a target names a module, by PEFT's rule for lists of targets."""
    return name == target or name.endswith(f".{target}")


def _nothing(target: str, layers: Sequence[Rows], network: Network) -> str:
    if target == OUTPUT and isinstance(network, Transformer) and network.config.tie_embeddings:
        return "LoRA target `lm_head`: this model's output matrix is its embedding (tied), which LoRA leaves alone here"
    known = list(dict.fromkeys(item.key for item in layers))
    match = nearest(target, known)
    hint = f"did you mean `{match}`? " if match else ""
    return (
        f"LoRA target `{target}` matches no linear layer; {hint}there are {', '.join(known)}, each alone or after its "
        f"layer's name (model.layers.0.self_attn.q_proj), or `{ALL_LINEAR}`"
    )
