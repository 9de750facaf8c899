"""Stage `tokenizer`: documents (and conversations) -> a vocabulary, and a report of what it does to text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import Field

from chatloom.corpus.text_samples import document_texts
from chatloom.dialogue.storage import read_conversations
from chatloom.errors import ChatloomError
from chatloom.evaluation.vocabulary import (
    bounded_texts,
    held_out_texts,
    other_vocabularies,
    sample_figures,
    write_vocabulary_report,
)
from chatloom.settings import Settings
from chatloom.stage import Context, Input, Line, Plan, PlanContext, Stage
from chatloom.tokens.algorithms import train_bpe, train_unigram
from chatloom.tokens.figures import Held, vocabulary_figures, wordpiece_figures
from chatloom.tokens.reserved import SENTINELS, n_reserved, reserve
from chatloom.tokens.sampling import Read, Sampled, SamplePlan, plan_sample
from chatloom.tokens.vocabulary import Vocabulary
from chatloom.tokens.wordpiece import WARNING, WordPiece
from chatloom.training.costs import document_bytes

CONVERSATIONS = "conversations"
# Memory of training for each byte of text, measured on 30 MB of English and Chinese.
MEMORY_A_BYTE = {"tokenizers": 50.0, "own": 30.0}


class TokenizerSettings(Settings):
    """What the vocabulary looks like."""

    vocab_size: int = Field(4096, description="entries, special tokens and the 256 bytes included")
    sentinels: int = Field(
        0,
        ge=0,
        description="of the entries, so many are sentinels for denoising objectives (T5: 100), and three more are "
        "mode tokens; 0: none",
    )
    algorithm: Literal["bpe", "unigram", "wordpiece"] = Field(
        "bpe",
        description="bpe: byte-pair encoding; unigram: Kudo 2018; wordpiece: as BERT's, loses text, so it is for "
        "encoders and teaching only",
    )
    alphabet: Literal["bytes", "characters"] = Field(
        "bytes",
        description="what entries are made of; characters: as in SentencePiece, with rare characters spelt in bytes",
    )
    character_coverage: float = Field(
        0.9995,
        gt=0,
        le=1,
        description="with `alphabet: characters`, the share of the text whose characters get entries",
    )
    trainer: Literal["tokenizers", "own"] = Field(
        "tokenizers",
        description="who learns the merges of bpe: the library, or `own`, which learns the same from large samples "
        "in less time and memory",
    )
    ties: Literal["lower_ids", "greater_bytes"] = Field(
        "lower_ids",
        description="which of two pairs of equal count is merged first; `greater_bytes` needs `trainer: own`",
    )
    digits: int = Field(2, ge=1, le=3, description="longest group of digits in one token")
    han: int = Field(
        0,
        ge=0,
        le=8,
        description="longest run of Han characters and kana in one token (0: any); 1 where there is little Chinese "
        "text, else the few phrases in it become tokens and a new wording is unreadable",
    )
    max_token_bytes: int = Field(24, ge=2, description="no entry is longer than this many bytes (8 Han characters)")
    min_count: int = Field(2, ge=1, description="a merge must be seen this often")
    allow_smaller: bool = Field(False, description="accept fewer entries when the text supports no more")
    conversation_share: float = Field(
        1.0,
        ge=0,
        le=1,
        description="learn from this share of the conversations; repeated phrases else become one token",
    )
    sample_bytes: int = Field(200_000_000, ge=1, description="learn from at most this much text")
    smoothing: float = Field(
        0.7,
        ge=0,
        le=1,
        description="where there is more text than that, languages and sources share the room in proportion to their "
        "bytes to this power; 1: the natural mixture, 0: equal shares",
    )
    curve_points: int = Field(
        3, ge=0, le=8, description="train this many times more, on halves of halves of the sample, to see it flatten"
    )
    report_bytes: int = Field(20_000_000, ge=1, description="measure on at most this much text")


@dataclass(frozen=True)
class _Texts:
    """The sample to learn from, planned in one pass and read again for every training."""

    read: Read
    plan: SamplePlan

    def __call__(self) -> Iterator[str]:
        return (item.text for item in self.plan.take(self.read()))


def run(context: Context) -> None:
    """Train on the training side of the documents; held-out text is only measured."""
    settings: TokenizerSettings = context.settings
    if mistakes := refusals(settings):
        raise ChatloomError(f"stage `{context.name}`: {mistakes[0]}")

    def read() -> Iterator[Sampled]:
        yield from document_texts(context.artifacts("documents"), "train")
        yield from _conversations(context, settings.conversation_share)

    sample = plan_sample(read(), settings.sample_bytes, smoothing=settings.smoothing, seed=context.seed)
    vocabulary = learn(settings, _Texts(read, sample), settings.allow_smaller)
    vocabulary.save(context.path)
    held = held_out_texts(context.artifacts("documents"), settings.report_bytes, settings.smoothing, context.seed)
    talks = bounded_texts(lambda: _conversations(context), settings.report_bytes, settings.smoothing, context.seed)
    held = replace(held, conversations=talks)
    if isinstance(vocabulary, WordPiece):
        figures = wordpiece_figures(vocabulary, held)
    else:
        figures = vocabulary_figures(vocabulary, held, other_vocabularies(context), seed=context.seed)
    figures["sample"] = sample_figures(sample, settings.sample_bytes)
    figures["curve"] = _curve(settings, read, sample, held, figures)
    write_vocabulary_report(context, figures)


def refusals(settings: TokenizerSettings) -> list[str]:
    """Settings that do not go together."""
    found = []
    own = settings.trainer == "own"
    if settings.algorithm == "bpe" and settings.alphabet == "characters" and not own:
        found.append("`alphabet: characters` is learnt by chatloom's own trainer; set `trainer: own`")
    if settings.algorithm == "bpe" and settings.ties != "lower_ids" and not own:
        found.append(f"`ties: {settings.ties}` is a rule of chatloom's own trainer; set `trainer: own`")
    if settings.algorithm == "wordpiece" and settings.alphabet == "characters":
        found.append("`alphabet` is for bpe and unigram; wordpiece has characters and no bytes")
    if settings.sentinels and settings.algorithm == "wordpiece":
        found.append("`sentinels` are for bpe and unigram; no model of chatloom reads a wordpiece vocabulary")
    reserved = n_reserved(settings.sentinels)
    if settings.vocab_size < 262 + reserved and settings.algorithm != "wordpiece":
        special = f"{6 + reserved}" if reserved else "six"
        found.append(
            f"vocab_size is {settings.vocab_size}; {special} special tokens and 256 bytes need {262 + reserved}"
        )
    return found


def learn(
    settings: TokenizerSettings, texts: Callable[[], Iterable[str]], allow_smaller: bool
) -> Vocabulary | WordPiece:
    """Train as the settings say; sentinels and mode tokens come after what is learnt."""
    size, smaller = settings.vocab_size - n_reserved(settings.sentinels), allow_smaller
    if settings.algorithm == "wordpiece":
        return WordPiece.train(
            texts(), size, max_token_bytes=settings.max_token_bytes, min_count=settings.min_count, allow_smaller=smaller
        )
    return reserve(_learn_lossless(settings, texts, size, smaller), settings.sentinels)


def _learn_lossless(
    settings: TokenizerSettings, texts: Callable[[], Iterable[str]], size: int, smaller: bool
) -> Vocabulary:
    cut: dict[str, Any] = {"digits": settings.digits, "han": settings.han, "allow_smaller": smaller}
    spelt: dict[str, Any] = {"alphabet": settings.alphabet, "coverage": settings.character_coverage}
    if settings.algorithm == "unigram":
        return train_unigram(texts, size, max_token_bytes=settings.max_token_bytes, **spelt, **cut)
    if settings.trainer == "own":
        return train_bpe(
            texts(),
            size,
            ties=settings.ties,
            max_token_bytes=settings.max_token_bytes,
            min_count=settings.min_count,
            **spelt,
            **cut,
        )
    return Vocabulary.train(
        texts(), size, max_token_chars=settings.max_token_bytes, min_count=settings.min_count, **cut
    )


def _conversations(context: Context, share: float = 1.0) -> Iterator[Sampled]:
    texts = [
        Sampled(f"{conversation.id}/{number}", "und", CONVERSATIONS, message.content)
        for artifact in context.artifacts("conversations")
        for conversation in read_conversations(artifact.file("sft.parquet"))
        for number, message in enumerate(conversation.messages)
    ]
    count = round(len(texts) * share)
    yield from (texts[i * len(texts) // count] for i in range(count))


def _curve(
    settings: TokenizerSettings, read: Read, sample: SamplePlan, held: Held, figures: dict[str, Any]
) -> list[dict[str, Any]]:
    """Bytes per token on the measured documents after training on ever larger parts of the sample."""
    whole = sum(sample.quota.values())
    rows = []
    for halvings in range(settings.curve_points, 0, -1):
        part = plan_sample(sample.take(read()), max(whole >> halvings, 1), smoothing=1.0, seed=sample.seed)
        texts = _Texts(lambda: sample.take(read()), part)
        size = sum(part.quota.values())
        if not any(True for _ in texts()):
            continue
        smaller = learn(settings, texts, True)
        rows.append({"bytes": size, "entries": smaller.size, "bytes_per_token": held.bytes_per_token(smaller)})
    if settings.curve_points:
        row = figures["compression"]["documents"]
        rows.append(
            {"bytes": whole, "entries": figures["vocabulary"]["size"], "bytes_per_token": row["bytes_per_token"]}
        )
    return rows


def plan(context: PlanContext) -> Plan:
    """Vocabulary size; time from 2 MB/s of text, what training on a few megabytes reaches on two cores; memory."""
    settings: TokenizerSettings = context.settings
    size = min(document_bytes(context, "documents"), settings.sample_bytes)
    repeats = 2.0 - 0.5**settings.curve_points
    lines = (
        Line("vocabulary", settings.vocab_size, "entries", exact=True),
        Line(SENTINELS, settings.sentinels, "entries", exact=True),
        Line("time", repeats * size / 2e6, "s"),
        Line("memory", 200e6 + MEMORY_A_BYTE[settings.trainer] * size, "bytes"),
    )
    warnings = (WARNING,) if settings.algorithm == "wordpiece" else ()
    return Plan(
        (*lines, Line("disk", 65.0 * settings.vocab_size, "bytes")),
        refusals=tuple(refusals(settings)),
        warnings=warnings,
    )


STAGE = Stage(
    kind="tokenizer",
    about="documents -> vocabulary, by BPE, Unigram or WordPiece",
    version=1,
    settings=TokenizerSettings,
    inputs={
        "documents": Input("text to learn from", kinds=("documents", "selection"), many=True),
        "conversations": Input("dialogues to learn from as well", kinds=("conversations",), required=False, many=True),
        "compare": Input(
            "vocabularies to compare with: a tokenizer.json, or GPT-2's vocab.json and merges.txt",
            kinds=("vocabulary", "model"),
            required=False,
            many=True,
            files=True,
        ),
    },
    output="vocabulary",
    run=run,
    plan=plan,
)
