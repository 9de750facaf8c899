"""Stage `merge-adapter`: a model and an adapter in PEFT's format -> one model folder that computes what both do.

LoRA goes into the weights. Virtual tokens cannot, so they lie in the folder's `adapter/`, from where every stage, chat
and evaluation take them; the weights are then the model's own.
"""

from __future__ import annotations

from pathlib import Path

from chatloom.errors import ChatloomError
from chatloom.model.adapters.export import adapter_of
from chatloom.model.adapters.peft_files import load_adapter, to_peft_tensors
from chatloom.settings import Settings
from chatloom.stage import Context, Input, Stage
from chatloom.training.bundle import ADAPTER, live_adapter, load_bundle, save_bundle


class MergeAdapterSettings(Settings):
    """Nothing is to be chosen."""


def run(context: Context) -> None:
    """Open both, check that they fit, write the folder."""
    start = context.artifact("model").path
    if live_adapter(start) is not None:
        raise ChatloomError(f"stage `{context.name}`: {start} has virtual tokens already; give the model without them")
    bundle = load_bundle(start)
    network = load_adapter(bundle.network, _folder(context))
    save_bundle(context.path, bundle.with_network(network))
    adapter = adapter_of(network)
    context.metrics.update(
        adapter=type(adapter).__name__.lower(),
        parameters=network.config.n_parameters(),
        adapter_parameters=sum(tensor.numel() for tensor in to_peft_tensors(network).values()),
    )


def _folder(context: Context) -> Path:
    """The adapter's folder: as given, or `adapter/` of an artifact."""
    made = context.optional("adapter")
    if made is not None:
        return made.path / ADAPTER
    found = context.files("adapter")
    if len(found) != 1:
        raise ChatloomError(f"stage `{context.name}`: takes one adapter, {len(found)} were given")
    return found[0]


STAGE = Stage(
    kind="merge-adapter",
    about="model + adapter in PEFT's format -> one model",
    version=1,
    settings=MergeAdapterSettings,
    inputs={
        "model": Input("the model that the adapter was trained on", kinds=("model", "checkpoint")),
        "adapter": Input("adapter folder, or an artifact with one inside", kinds=("model", "checkpoint"), files=True),
    },
    output="model",
    run=run,
)
