"""Stage `pretrain`: token store -> base model, with held-out bits per byte beside a unigram and a trigram baseline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from chatloom.artifact import Artifact, write_json
from chatloom.evaluation.ngram import NgramModel
from chatloom.evaluation.perplexity import TextScore, score_text, total
from chatloom.model.config import TransformerConfig
from chatloom.model.transformer import Transformer
from chatloom.settings import Settings
from chatloom.stage import Context, Input, Plan, PlanContext, Stage
from chatloom.tokens.language_model_rows import LanguageModelRows
from chatloom.tokens.store import TokenStore
from chatloom.tokens.vocabulary import Vocabulary
from chatloom.training.bundle import Bundle, load_bundle, save_bundle
from chatloom.training.costs import training_plan
from chatloom.training.forward import NextTokenLoss, score
from chatloom.training.loop import Trainer
from chatloom.training.optimizers import ScheduledAdamW
from chatloom.training.session import n_parameters, resolve_device, train
from chatloom.training.settings import LoopSettings, OptimizerSettings


class ModelSettings(Settings):
    """Shape of the decoder (Llama layout: RMSNorm, RoPE, SwiGLU)."""

    hidden_size: int = Field(128, ge=2, description="width of the residual stream")
    n_layers: int = Field(4, ge=1, description="blocks")
    n_heads: int = Field(4, ge=1, description="query heads")
    n_kv_heads: int | None = Field(None, description="key-value heads; as many as query heads when null")
    head_dim: int | None = Field(None, description="width of a head; hidden_size / n_heads when null")
    intermediate_size: int | None = Field(None, description="width of the SwiGLU; 8/3 hidden_size, up to 8, when null")
    context: int = Field(256, ge=8, description="longest sequence, in tokens")
    rope_theta: float = Field(10000.0, gt=0, description="base of the rotary angles")
    tie_embeddings: bool = Field(True, description="one matrix for reading and predicting tokens")

    def config(self, vocab_size: int) -> TransformerConfig:
        """The complete config for a vocabulary."""
        return TransformerConfig(
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads or self.n_heads,
            head_dim=self.head_dim or self.hidden_size // self.n_heads,
            intermediate_size=self.intermediate_size or -(-8 * self.hidden_size // 24) * 8,
            max_positions=self.context,
            rope_theta=self.rope_theta,
            tie_embeddings=self.tie_embeddings,
        )


class PretrainSettings(Settings):
    """How to pretrain."""

    model: ModelSettings = Field(ModelSettings(), description="shape of the model")
    epochs: float = Field(1.0, gt=0, description="passes over the training store")
    batch_rows: int = Field(32, ge=1, description="rows of `model.context` tokens in one optimizer step")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: autocast, fp32 weights")
    optimizer: OptimizerSettings = Field(OptimizerSettings(lr=1e-3), description="AdamW")
    loop: LoopSettings = Field(LoopSettings(), description="how it runs")


def run(context: Context) -> None:
    """Train on `train.*`, measure on `held_out.*`."""
    settings: PretrainSettings = context.settings
    device = resolve_device(settings.loop.device)
    folder = context.artifact("tokens").path
    vocabulary = Vocabulary.load(folder)
    store = TokenStore(folder, vocabulary, name="train")
    config = settings.model.config(vocabulary.size)
    model = Transformer(config, generator=torch.Generator().manual_seed(context.seed)).to(device)
    rows = LanguageModelRows(store.lengths, config.max_positions, context.seed)
    total_steps = max(1, round(settings.epochs * rows.n_rows / settings.batch_rows))
    optimizer = ScheduledAdamW({"model": model}, {"model": settings.optimizer}, total_steps)
    trainer = Trainer({"model": model}, optimizer, settings.loop.max_skips, settings.precision)
    loss = NextTokenLoss(model)
    rows_at_once = max(1, settings.loop.micro_batch_tokens // config.max_positions)

    def step(index: int) -> dict[str, float]:
        chosen = rows.rows(index * settings.batch_rows, settings.batch_rows)
        batches = [
            rows.batch(store, chosen[first : first + rows_at_once], vocabulary.pad_id).to(device)
            for first in range(0, len(chosen), rows_at_once)
        ]
        return {**trainer.update(batches, loss), "tokens": sum(batch.n_tokens for batch in batches)}

    bundle = Bundle(model, vocabulary, None)
    train(
        context,
        trainer,
        total_steps,
        step,
        loop=settings.loop,
        kind="model",
        write_model=lambda target: save_bundle(target, bundle),
        load_model=lambda source: _reload(model, source),
    )
    context.metrics.update(
        parameters=n_parameters({"model": model}),
        rows=rows.n_rows,
        row_padding=round(rows.padding, 5),
        heldout=heldout_scores(context.artifact("tokens"), store, bundle, device),
    )
    write_json(context.path / "heldout.json", context.metrics["heldout"])


def heldout_scores(
    tokens: Artifact, train_store: TokenStore, bundle: Bundle, device: torch.device
) -> dict[str, dict[str, object]]:
    """Bits per byte on held-out documents: the model, a unigram and a trigram baseline; empty without such documents.

    The model reads each document in pieces of its context that share one token, so every token is predicted once.
    """
    vocabulary = bundle.vocabulary
    if not (tokens.path / "held_out.json").is_file():
        return {}
    documents = list(TokenStore(tokens.path, vocabulary, name="held_out"))
    training = list(train_store)
    scores: dict[str, TextScore] = {
        "model": total(
            score_text(documents, lambda part: model_logprobs(bundle, part, device), vocabulary.bytes_per_id)
        )
    }
    for name, order in (("unigram", 1), ("trigram", 3)):
        ngram = NgramModel.fit(training, vocabulary.size, order=order)
        scores[name] = total(score_text(documents, ngram.document_logprobs, vocabulary.bytes_per_id))
    return {name: score.as_dict() for name, score in scores.items()}


@torch.no_grad()
def model_logprobs(bundle: Bundle, documents: Sequence[np.ndarray], device: torch.device) -> Iterable[np.ndarray]:
    """Log-probabilities (nats) of ids[1:] of each document, read in pieces of at most the model's context."""
    context = bundle.model.config.max_positions
    rows = LanguageModelRows([len(item) for item in documents], context, seed=0)
    found = [np.zeros(len(item) - 1) for item in documents]
    for first in range(0, rows.n_rows, 32):
        chosen = range(first, min(first + 32, rows.n_rows))
        batch = rows.batch(_Documents(documents), list(chosen), bundle.vocabulary.pad_id).to(device)
        scored = score(bundle.model, batch)
        pieces = [piece for row in chosen for piece in rows.pieces(row)]
        segments = scored.segments.cpu().numpy()
        values = scored.logprobs.float().cpu().numpy()
        places = batch.positions.flatten().index_select(0, scored.index).cpu().numpy()
        for number, piece in enumerate(pieces):
            mine = segments == number
            found[piece.document][piece.start + places[mine]] = values[mine]
    return found


class _Documents:
    def __init__(self, documents: Sequence[np.ndarray]) -> None:
        self._documents = documents

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document."""
        return np.array([len(item) for item in self._documents])

    def read(self, document: int, start: int = 0, end: int | None = None) -> np.ndarray:
        """Ids start..end of one document."""
        return self._documents[document][start:end]


def _reload(model: Transformer, folder: Path) -> None:
    model.load_state_dict(load_bundle(folder).model.state_dict())


def plan(context: PlanContext) -> Plan:
    """Cost of the training tokens; sizes that cannot work are refused by the model config."""
    settings: PretrainSettings = context.settings
    tokens = context.inputs.get("tokens")
    if isinstance(tokens, Artifact):
        size, exact = float(tokens.metrics["train"]["tokens"]), True
        vocab_size = Vocabulary.load(tokens.path).size
    else:
        known = context.plans.get("tokens")
        size, exact = (known.value("corpus_tokens") if known else 0.0), False
        vocab_size = int(known.value("vocabulary", 4096)) if known else 4096
    config = settings.model.config(vocab_size)
    return training_plan(
        config,
        context,
        tokens=settings.epochs * size,
        exact_tokens=exact,
        micro_batch_tokens=settings.loop.micro_batch_tokens,
    )


STAGE = Stage(
    kind="pretrain",
    about="token store -> base model",
    version=1,
    settings=PretrainSettings,
    inputs={"tokens": Input("token store", kinds=("tokens",))},
    output="model",
    run=run,
    plan=plan,
)
