"""What of a model a stage trains: everything, everything but what is frozen, or an adapter alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, model_validator

from chatloom.errors import ChatloomError
from chatloom.model.adapters.encoders import make_encoder
from chatloom.model.adapters.export import adapter_of, is_adapter_name
from chatloom.model.adapters.freezing import freeze
from chatloom.model.adapters.lora import add_lora, lora_layers
from chatloom.model.adapters.peft_config import SCORE
from chatloom.model.adapters.specs import Adapter, Lora, Prefix, Prompt, PTuning
from chatloom.model.adapters.virtual_tokens import PromptedTransformer
from chatloom.model.transformer import Transformer
from chatloom.settings import Settings
from chatloom.training.bundle import Bundle, load_bundle, save_bundle
from chatloom.training.checkpoints import State
from chatloom.training.parallel.team import Team

ADAPTER_ABOUT = "train an adapter instead of the model (docs/adapters.md); null: the model itself"
FREEZE_ABOUT = "weights that stay as they are: embeddings, norms, layers.0-5, ... (docs/adapters.md)"

# Which settings each kind of adapter has.
_OWN = {
    "lora": {"rank", "alpha", "dropout", "rslora", "targets"},
    "prefix": {"virtual_tokens", "projection", "hidden_size"},
    "prompt": {"virtual_tokens"},
    "p-tuning": {"virtual_tokens", "network", "hidden_size", "lstm_layers"},
}


class AdapterSettings(Settings):
    """A few weights that are trained in the place of the model's own."""

    kind: Literal["lora", "prefix", "prompt", "p-tuning"] = Field(
        "lora",
        description="lora: low-rank updates of matrices (Hu 2021); prefix: keys and values before every text (Li & "
        "Liang 2021); prompt: input vectors before it (Lester 2021); p-tuning: the same, made by a network (Liu 2021)",
    )
    rank: int = Field(8, ge=1, description="lora: rank of an update")
    alpha: float = Field(16.0, gt=0, description="lora: an update is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="lora: share of an update's inputs that is dropped")
    rslora: bool = Field(False, description="lora: scale by alpha / sqrt(rank) (Kalajdzievski 2023)")
    targets: tuple[str, ...] = Field(
        ("q_proj", "v_proj"), description="lora: matrices by Hugging Face's names, or all-linear (Hu 2021: q and v)"
    )
    virtual_tokens: int = Field(20, ge=1, description="prefix, prompt, p-tuning: virtual tokens before a text")
    projection: bool = Field(False, description="prefix: train a network that makes the keys and values")
    network: Literal["mlp", "lstm"] = Field("mlp", description="p-tuning: what makes the vectors")
    hidden_size: int | None = Field(
        None, ge=1, description="prefix, p-tuning: width of that network; null: as its output"
    )
    lstm_layers: int = Field(2, ge=1, description="p-tuning: layers of the lstm")

    @model_validator(mode="after")
    def _only_its_own(self) -> Self:
        for name, field in type(self).model_fields.items():
            if name != "kind" and name not in _OWN[self.kind] and getattr(self, name) != field.default:
                kinds = [kind for kind, own in _OWN.items() if name in own]
                raise ValueError(f"`{name}` has no meaning for kind {self.kind}; it belongs to {', '.join(kinds)}")
        return self

    def spec(self) -> Adapter:
        """The adapter that these settings describe."""
        if self.kind == "lora":
            return Lora(self.rank, self.alpha, self.dropout, self.rslora, self.targets)
        if self.kind == "prefix":
            return Prefix(self.virtual_tokens, self.projection, self.hidden_size)
        if self.kind == "prompt":
            return Prompt(self.virtual_tokens)
        return PTuning(self.virtual_tokens, self.network, self.hidden_size, self.lstm_layers)


def only_lora(adapter: AdapterSettings | None, stage: str) -> None:
    """Refuse virtual tokens where the model must start as what it was given."""
    if adapter is not None and adapter.kind != "lora":
        raise ChatloomError(
            f"adapter.kind {adapter.kind}: stage {stage} takes lora alone, since the model must start as its own "
            "reference, and fresh virtual tokens change what it says"
        )


class Tuning:
    """A bundle in training, and which of its weights move.

    With an adapter the base stays bit for bit what the stage was given: a checkpoint's model folder has the adapter
    merged, and its state has the adapter's own weights, from which a run goes on.
    """

    def __init__(
        self,
        bundle: Bundle,
        adapter: AdapterSettings | None = None,
        frozen: Sequence[str] = (),
        seed: int = 0,
        team: Team | None = None,
    ) -> None:
        """Raises ChatloomError where nothing would be trained, or a second adapter is asked for."""
        if adapter is not None and team is not None and team.world.mesh is not None:
            raise ChatloomError("an adapter is trained by one process; start it without torchrun, or leave it out")
        self.adapter = None if adapter is None else adapter.spec()
        self.bundle = bundle
        if adapter is not None:
            if frozen:
                raise ChatloomError("freeze and adapter are both given; an adapter leaves the whole model as it is")
            self.bundle = _with_adapter(bundle, adapter.spec(), seed)
        elif frozen:
            freeze(bundle.network, frozen)
        self.network = self.bundle.network

    @property
    def n_trained(self) -> int:
        """Numbers that are trained."""
        return sum(p.numel() for p in self.network.parameters() if p.requires_grad)

    def save(self, folder: Path) -> None:
        """Write the model folder."""
        save_bundle(folder, self.bundle)

    def load(self, folder: Path) -> None:
        """Put back the weights of a model folder; an adapter's are in the state, and its base never moved."""
        if self.adapter is None:
            self.network.load_state_dict(load_bundle(folder).network.state_dict())

    def state(self) -> State:
        """All but the frozen base: the adapter's own weights, unmerged, and a reward model's score and bias."""
        if self.adapter is None:
            return State({}, {})
        frozen = {name for name, p in self.network.named_parameters() if not p.requires_grad}
        kept = {name: value for name, value in self.network.state_dict().items() if name not in frozen}
        return State({}, {"adapter": kept})

    def load_state(self, state: State) -> None:
        """Put back what `state` gave."""
        if self.adapter is None:
            return
        own = self.state().tensors["adapter"]
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(state.tensors["adapter"][name])

    @contextlib.contextmanager
    def dropping(self) -> Iterator[None]:
        """LoRA's dropout is on inside, the model's own is not: for stages that train without that."""
        layers = [layer for _, layer in lora_layers(self.network)]
        for layer in layers:
            layer.train()
        try:
            yield
        finally:
            for layer in layers:
                layer.eval()


def _with_adapter(bundle: Bundle, spec: Adapter, seed: int) -> Bundle:
    network = bundle.network
    if adapter_of(network) is not None:
        raise ChatloomError(
            "this model has virtual tokens already, and a second adapter is not supported; train without `adapter`, "
            "which trains them and the model, or start from the model without them"
        )
    network.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    if isinstance(spec, Lora):
        add_lora(network, spec, generator)
    elif isinstance(network, Transformer):
        encoder = make_encoder(spec, network.config, network.embedding.weight, generator)
        bundle = bundle.with_network(PromptedTransformer(network, spec, encoder))
    else:
        raise ChatloomError("virtual tokens are for language models; tune a reward model with kind `lora`")
    for name, parameter in bundle.network.named_parameters():
        parameter.requires_grad_(is_adapter_name(name) or name == SCORE)
    return bundle
