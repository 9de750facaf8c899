"""Settings of synthetic text: how documents are clustered, what is asked, and which replies stay."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from chatloom.corpus.settings import OFF, RuleSettings
from chatloom.settings import Settings

Share = Annotated[float, Field(ge=0.0, le=1.0)]
# Headings, lists and lines of a conversation are how models write, and no sign of a page's navigation.
MARKDOWN = {name: {"*": OFF} for name in ("terminal_punctuation", "bullet_lines")}


class ClusterSettings(Settings):
    """How the seed documents are put into clusters, for each language by itself."""

    vectors: Literal["tfidf", "label", "file"] = Field(
        "tfidf",
        description="tfidf (made here), label (of each document: a list of numbers, or the cluster's name), or file "
        "(the input `embeddings`)",
    )
    label: str = Field("", description="the label that `vectors: label` reads")
    count: int = Field(24, ge=1, description="clusters of a language; fewer where there are fewer documents")
    min_documents: int = Field(5, ge=1, description="a cluster with fewer documents is not written about")
    fit_documents: int = Field(
        10_000, ge=10, description="documents of a language that clusters and topic terms are found on"
    )
    columns: int = Field(100, ge=2, le=1000, description="columns that TF-IDF vectors are brought to before clustering")
    terms: int = Field(24, ge=1, description="topic terms of a cluster")
    seeds: int = Field(200, ge=1, description="documents of a cluster that prompts may show a passage of")
    passage_words: int = Field(
        200, ge=10, description="length of such a passage in words (Chinese: twice as many characters)"
    )


class AskSettings(Settings):
    """What is asked."""

    prompts: int = Field(100, ge=1, description="how many prompts")
    samples: int = Field(1, ge=1, description="replies to each")
    templates: tuple[str, ...] = Field((), description="names of the templates to use; empty: all of the file")
    languages: tuple[str, ...] = Field((), description="write in these languages only; empty: all that templates have")
    terms: int = Field(4, ge=1, description="topic terms in one prompt")
    balance: float = Field(
        0.5, ge=0, le=1, description="a cluster's share: its documents to this power; 0: all alike, 1: as they are"
    )
    max_tokens: int = Field(1024, ge=1, description="longest reply, in tokens")
    temperature: float | None = Field(1.0, ge=0, description="of the generator; null: its default")
    top_p: float | None = Field(None, gt=0, le=1, description="of the generator; null: its default")
    send_seed: bool = Field(True, description="tell an endpoint the seed of each reply; some refuse that")


class ReplyCopySettings(Settings):
    """Which copies go, of other replies and of passages that prompts show; the first one stays."""

    exact: bool = Field(True, description="drop replies whose text is equal to an earlier one (case and space aside)")
    near: bool = Field(True, description="drop replies that are nearly equal to an earlier one")
    threshold: float = Field(
        0.7, gt=0.0, le=1.0, description="Jaccard similarity of 5-gram shingles from which two are nearly equal"
    )


class FilterSettings(Settings):
    """Which replies stay."""

    unfinished: bool = Field(False, description="keep replies that were cut off at `max_tokens`")
    refusals: bool = Field(True, description="drop replies with one of the templates' refusal phrases")
    same_language: bool = Field(True, description="drop replies in another language than their prompt's")
    rules: RuleSettings = Field(
        default=RuleSettings(limits=MARKDOWN), description="length, repetition and the other rules; Markdown may stay"
    )
    max_copied: Share = Field(
        0.3, description="share of a reply's n-grams (8 words, 12 Chinese characters) that its prompt has, at most"
    )
    duplicates: ReplyCopySettings = Field(
        default_factory=ReplyCopySettings, description="copies of other replies and of passages that prompts show"
    )
    max_failed: Share = Field(0.1, description="share of prompts without a reply at which the run stops with an error")
