"""What a stage will cost, as lines of a plan: parameters, tokens, FLOPs, memory, disk, time.

What is made already is counted in its files; what is not is taken from the plan of the stage that will make it. So a
stage that makes texts says in its plan how many there will be (`records`, `pairs`, `prompts`, `tests`) and how long
they are (`prompt_tokens`, `answer_tokens`, on the mean), and a stage that makes a model how long its answers are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from chatloom.artifact import Artifact
from chatloom.corpus.record import document_files
from chatloom.errors import ChatloomError
from chatloom.model import weight_files
from chatloom.model.config import TransformerConfig
from chatloom.model.layouts import read_config
from chatloom.scaling.compute import (
    checkpoint_bytes,
    kv_cache_bytes,
    seconds_estimate,
    training_memory,
)
from chatloom.stage import Line, Plan, PlanContext

# Shares of the measured rate of matrix products that models 64 to 512 wide reached on one and on two CPU cores:
# training 0.50 to 0.67; sampling, whose matrices are as thin as the batch, 0.17 to 0.26.
UTILISATION = 0.5
SAMPLING_UTILISATION = 0.2
BYTES_A_TOKEN = 4.0
# Where nothing tells how long texts are. Ordinary instruction data takes 100 to 300 tokens, short questions 40.
PROMPT_TOKENS = 50.0
ANSWER_TOKENS = 50.0
PROGRAM_BYTES = 450e6  # Python with torch, pyarrow and tokenizers, before any data
ADAPTED_PASSES = 2.0  # forward, and backward without the gradients of the model's own matrices
SAMPLED_AT_ONCE = 256  # rows that the generator decodes together
UNREADABLE = (OSError, pa.ArrowException)  # what is missing or damaged is for the stage to say
MODEL = "model"  # fact of a plan: the TransformerConfig of the model that comes out
TABLES = {"records": "sft.parquet", "pairs": "pairs.parquet", "prompts": "prompts.parquet", "tests": "test.parquet"}


@dataclass(frozen=True)
class Texts:
    """The records of an input: how many, and the mean length of their prompts and answers, in tokens."""

    count: float = 0.0
    prompt_tokens: float = PROMPT_TOKENS
    answer_tokens: float = ANSWER_TOKENS

    @property
    def tokens(self) -> float:
        """A prompt with one answer."""
        return self.prompt_tokens + self.answer_tokens

    def lines(self) -> tuple[Line, ...]:
        """The lengths, for the plans of later stages."""
        return (
            Line("prompt_tokens", self.prompt_tokens, "tokens"),
            Line("answer_tokens", self.answer_tokens, "tokens"),
        )


def texts_of(context: PlanContext, name: str, count: str) -> Texts:
    """What input `name` holds of the records that plans call `count`: counted where made, else as planned."""
    parts = [_counted(item.path / TABLES[count]) for item in _artifacts(context, name)]
    parts += [
        Texts(plan.value(count), plan.value("prompt_tokens", PROMPT_TOKENS), plan.value("answer_tokens", ANSWER_TOKENS))
        for plan in _unmade(context, name)
    ]
    total = sum(part.count for part in parts)
    if not total:
        return Texts()
    return Texts(
        total,
        sum(part.count * part.prompt_tokens for part in parts) / total,
        sum(part.count * part.answer_tokens for part in parts) / total,
    )


def all_made(context: PlanContext, name: str) -> bool:
    """Whether everything that input `name` takes is made already, so that what is counted there is exact."""
    return not any(True for _ in _unmade(context, name))


def answer_tokens(context: PlanContext, name: str, limit: int) -> float:
    """Length of an answer that the model of input `name` samples, as it learnt to answer; `limit` where unknown."""
    known = context.plans.get(name)
    return min(limit, known.value("answer_tokens", limit)) if known is not None else limit


def document_bytes(context: PlanContext, name: str) -> float:
    """Bytes of text of the documents that input `name` holds."""
    made = sum(_text_bytes(file) for item in _artifacts(context, name) for file in document_files(item.path))
    return made + sum(plan.value("bytes") for plan in _unmade(context, name))


def _text_bytes(file: Path) -> float:
    try:
        table = pq.read_metadata(file)
    except UNREADABLE:
        return 0.0
    columns = [table.schema.column(i).path for i in range(table.num_columns)]
    place = columns.index("text") if "text" in columns else 0
    return float(sum(table.row_group(i).column(place).total_uncompressed_size for i in range(table.num_row_groups)))


def n_sources(context: PlanContext, name: str) -> int:
    """How many artifacts input `name` takes, made or not."""
    return len(_artifacts(context, name)) + len(list(_unmade(context, name)))


def _artifacts(context: PlanContext, name: str) -> list[Artifact]:
    given = context.inputs.get(name, [])
    return [item for item in (given if isinstance(given, list) else [given]) if isinstance(item, Artifact)]


def _unmade(context: PlanContext, name: str) -> Iterator[Plan]:
    return (plan for key, plan in context.plans.items() if key.startswith(f"{name}."))


def _counted(file: Path) -> Texts:
    """How many rows a table of dialogues has, and the mean lengths in its first rows."""
    try:
        table = pq.ParquetFile(file)
        rows: list[dict[str, Any]] = next((batch.to_pylist() for batch in table.iter_batches(batch_size=256)), [])
    except UNREADABLE:
        return Texts()
    return lengths(table.metadata.num_rows, [_prompt_and_answers(row) for row in rows])


def _prompt_and_answers(row: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The texts of a row's prompt and of its answers, whichever table it is of; a prompt alone may have no answer."""
    messages = [str(message["content"]) for message in row.get("prompt") or row.get("messages") or []]
    if row.get("answers") is not None:
        return messages, list(row["answers"])
    if "answer" in row:
        return messages, [row["answer"]] if row["answer"] else []
    return messages[:-1], messages[-1:]


def lengths(count: float, examples: Sequence[tuple[Sequence[str], Sequence[str]]]) -> Texts:
    """`count` texts like these (messages of a prompt, its answers); a turn takes two more tokens, an answer one."""
    prompts = [sum(2 + _tokens(text) for text in messages) + 1 for messages, _ in examples]
    answers = [1 + _tokens(text) for _, found in examples for text in found]
    return Texts(
        count,
        sum(prompts) / len(prompts) if prompts else PROMPT_TOKENS,
        sum(answers) / len(answers) if answers else ANSWER_TOKENS,
    )


def _tokens(text: str) -> float:
    return len(text.encode("utf-8", "replace")) / BYTES_A_TOKEN


UNKNOWN_MODEL = Plan(warnings=("the model is not known yet, so its cost is not either",))


def training_plan(
    config: TransformerConfig,
    context: PlanContext,
    *,
    tokens: float,
    exact_tokens: bool = False,
    passes: float = 3.0,
    scored: float = 0.0,
    sampled: float = 0.0,
    row_tokens: float = 0.0,
    trained: int = 1,
    frozen: int = 0,
    adapted: bool = False,
    micro_batch_tokens: int = 8192,
) -> Plan:
    """Lines for going over `tokens` tokens; `passes`: a token's FLOPs in forward passes (3: forward and backward).

    `scored` tokens go through one more forward pass; `sampled` ones are written, or read as a prompt, by the generator,
    in rows of `row_tokens`. Without a `trained` model nothing is kept for a backward pass or left on the disk. Where an
    adapter is trained (`adapted`), one `trained` model has neither gradients nor optimizer states; the adapter itself,
    of a few hundredths of the model, is not counted.
    """
    if adapted:
        trained, frozen = trained - 1, frozen + 1
    forward = config.forward_flops_per_token(config.max_positions)
    straight, thin = forward * (passes * tokens + scored), forward * sampled
    loop = getattr(context.settings, "loop", None)
    recompute = (not trained and not adapted) or getattr(loop, "recompute", "none") == "block"
    memory = training_memory(
        config, micro_batch_tokens, trained_copies=trained, frozen_copies=frozen, recompute=recompute
    ).total
    # The generator runs between steps, so its cache comes instead of activations, not on top of them.
    cache = kv_cache_bytes(config, round(row_tokens), sequences=SAMPLED_AT_ONCE)
    memory = max(memory, memory_of_weights(config, trained, frozen) + cache)
    rate = context.flops_per_second
    seconds = seconds_estimate(straight, rate, utilisation=UTILISATION)
    seconds += seconds_estimate(thin, rate, utilisation=SAMPLING_UTILISATION)
    checkpoint = trained * checkpoint_bytes(config.n_parameters())
    checkpoint += adapted * checkpoint_bytes(config.n_parameters(), with_optimizer=False)
    # A checkpoint that is written beside training is copied first.
    copied = checkpoint if getattr(loop, "checkpoint_in_background", False) else 0
    kept = getattr(loop, "keep_checkpoints", 2)
    exact = exact_tokens and not scored and not sampled
    return Plan(
        (
            Line("parameters", config.n_parameters(), "", exact=True),
            Line("tokens", tokens, "tokens", exact=exact_tokens),
            Line("flops", straight + thin, "FLOP", exact=exact),
            Line("memory", PROGRAM_BYTES + memory + copied, "bytes"),
            Line("disk", checkpoint, "bytes"),
            # while it runs: the checkpoints that are kept, and the one being written
            Line("disk_meanwhile", (kept + 1) * checkpoint, "bytes"),
            Line("time", seconds, "s"),
        ),
        facts={MODEL: config},
    )


def memory_of_weights(config: TransformerConfig, trained: int, frozen: int) -> int:
    """Bytes of models, gradients and optimizer states, without activations."""
    parts = training_memory(config, 1, trained_copies=trained, frozen_copies=frozen)
    return parts.total - parts.activations_estimate


def planned_config(context: PlanContext, name: str) -> TransformerConfig | None:
    """The model config of an input: from its folder when it is there, else from its own plan; None when unknown."""
    made = _artifacts(context, name)
    if made:
        folder = made[0].path
        try:
            return read_config(weight_files.read_json(folder, "config.json"), str(folder))[0]
        except ChatloomError:
            return None
    known = context.plans.get(name)
    config = None if known is None else known.facts.get(MODEL)
    return config if isinstance(config, TransformerConfig) else None


def model_plan(
    context: PlanContext,
    *,
    tokens: float,
    passes: float = 3.0,
    scored: float = 0.0,
    sampled: float = 0.0,
    answer_tokens: float | None = None,
    adapted: bool = False,
) -> Plan:
    """Plan of a stage that trains what it gets as `model`, as `training_plan`; `answer_tokens`: of the model it makes.

    Left out, the model goes on to answer as the one it starts from. `adapted`: an adapter is trained, not the model.
    """
    config = planned_config(context, "model")
    if config is None:
        return UNKNOWN_MODEL
    costs = training_plan(
        config,
        context,
        tokens=tokens,
        passes=ADAPTED_PASSES if adapted else passes,
        scored=scored,
        sampled=sampled,
        adapted=adapted,
        micro_batch_tokens=context.settings.loop.micro_batch_tokens,
    )
    length = answer_tokens
    if length is None and "model" in context.plans:
        length = context.plans["model"].value("answer_tokens") or None
    if length is None:
        return costs
    return replace(costs, lines=(*costs.lines, Line("answer_tokens", length, "tokens")))
