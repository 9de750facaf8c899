"""Stage `extend-model`: a model and its extended vocabulary -> the model with rows for the new tokens.

Each new row is the mean of the rows of the tokens that used to stand there; all else is copied.
"""

from __future__ import annotations

import json
from typing import Any

from chatloom.artifact import write_json
from chatloom.dialogue import template as templates
from chatloom.dialogue.template import ChatTemplate
from chatloom.errors import ChatloomError
from chatloom.model import huggingface
from chatloom.model.extension import extend_model
from chatloom.model.transformer import Transformer
from chatloom.settings import Settings
from chatloom.stage import Context, Input, Stage
from chatloom.tokens.extension import entries_sha256
from chatloom.tokens.importing import import_vocabulary
from chatloom.tokens.vocabulary import Vocabulary
from chatloom.training.bundle import Bundle, live_adapter, save_bundle

FILE = "extension.json"


class ExtendModelSettings(Settings):
    """Nothing is to be chosen."""


def run(context: Context) -> None:
    """Check that model and vocabulary belong together, add the rows, write the folder."""
    folder, extended = context.artifact("model").path, context.artifact("vocabulary")
    if live_adapter(folder) is not None:
        raise ChatloomError(f"stage `{context.name}`: {folder} has virtual tokens; extend the model without them")
    if not (extended.path / FILE).is_file():
        raise ChatloomError(
            f"stage `{context.name}`: {extended.path} has no {FILE}; give what the stage `extend-tokenizer` made"
        )
    extension: dict[str, Any] = json.loads((extended.path / FILE).read_text(encoding="utf-8"))
    first = int(extension["first_new_id"])
    vocabulary = Vocabulary.load(extended.path)
    network = huggingface.load_model(folder)
    if not isinstance(network, Transformer):
        raise ChatloomError(f"stage `{context.name}`: {folder} is a reward model; extend the model it was made of")
    if (folder / "tokenizer.json").is_file():
        own = import_vocabulary(folder)
        if own.size < first or entries_sha256(own, first) != extension["old_entries_sha256"]:
            raise ChatloomError(
                f"stage `{context.name}`: {extended.path} was extended from another vocabulary than that of {folder}; "
                "run `extend-tokenizer` on the model's own"
            )
    grown = extend_model(network, extension["pieces"], first)
    template = ChatTemplate.load(folder, vocabulary) if (folder / templates.FILE).is_file() else None
    save_bundle(context.path, Bundle(grown, vocabulary, template))
    write_json(context.path / FILE, {"first_new_id": first})
    context.metrics.update(
        rows_before=network.config.vocab_size,
        rows=grown.config.vocab_size,
        first_new_id=first,
        new_tokens=vocabulary.size - first,
        parameters=grown.config.n_parameters(),
    )


STAGE = Stage(
    kind="extend-model",
    about="model + extended vocabulary -> the model with rows for the new tokens",
    version=1,
    settings=ExtendModelSettings,
    inputs={
        "model": Input("the model to extend", kinds=("model",)),
        "vocabulary": Input("its vocabulary, extended", kinds=("vocabulary",)),
    },
    output="model",
    run=run,
)
