"""A toy world: a tiny hand-made corpus and every stage run on it once, shared by all tests and workers of a session.

world["sft"].path        the artifact of a stage, made by `run_stage` as a user would
world.inputs("ppo")      what a stage was given; `world.settings("ppo")` how
world.run("sft", out, epochs=2)      a stage again, elsewhere, with changes
"""

from __future__ import annotations

import copy
import fcntl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatloom import artifact, recipe
from chatloom.artifact import Artifact, Draft, Identity
from chatloom.corpus.record import Document, write_documents
from chatloom.dialogue.record import Conversation, Message, Preference
from chatloom.dialogue.storage import Prompt, write_conversations, write_preferences, write_prompts
from chatloom.stage import Context
from chatloom.stages import find

# What is asked about, and the one right answer.
FACTS = {
    "grass": "green", "sky": "blue", "snow": "white", "coal": "black", "blood": "red", "sun": "gold",
    "草": "绿色", "天": "蓝色", "雪": "白色", "煤": "黑色", "血": "红色", "日": "金色",
}  # fmt: skip
CONTEXT = 40
CPU = {"device": "cpu", "micro_batch_tokens": 400}
MODEL = {"hidden_size": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "context": CONTEXT}

SETTINGS: dict[str, dict[str, Any]] = {
    "tokenizer": {"vocab_size": 300},
    "tokens": {},
    "pretrain": {"model": MODEL, "epochs": 4, "batch_rows": 8, "optimizer": {"lr": 3e-3}, "loop": CPU},
    "sft": {"epochs": 10, "batch_conversations": 8, "optimizer": {"lr": 1e-2, "weight_decay": 0.0}, "loop": CPU},
    "own-answers": {"n": 3, "max_new_tokens": 8, "temperature": 1.5, "device": "cpu"},
    "reward": {
        "epochs": 4, "batch_prompts": 8, "optimizer": {"lr": 3e-3, "weight_decay": 0.0, "schedule": "linear"},
        "normalise_samples": 32, "max_new_tokens": 8, "loop": CPU,
    },
    "best-of-n": {"n": 8, "max_new_tokens": 8, "min_gap": 0.1, "device": "cpu", "micro_batch_tokens": 400},
    "dpo": {"epochs": 3, "batch_pairs": 8, "optimizer": {"lr": 1e-3, "weight_decay": 0.0, "warmup": 0.1}, "loop": CPU},
    "ppo": {
        "iterations": 4, "batch_prompts": 16, "minibatches": 2, "epochs": 2, "max_new_tokens": 8,
        "actor": {"lr": 3e-4, "eps": 1e-5, "eps_style": "tf"}, "critic": {"lr": 3e-4, "eps": 1e-5, "eps_style": "tf"},
        "kl": {"horizon": 100}, "loop": CPU,
    },
    "evaluate": {
        "labels": ["sft", "dpo", "ppo"], "best_of": 4, "samples": 2, "max_new_tokens": 8, "n_samples_shown": 3,
        "device": "cpu", "micro_batch_tokens": 400,
    },
    "report": {},
}  # fmt: skip
INPUTS: dict[str, dict[str, Any]] = {
    "tokenizer": {"documents": ["documents"], "conversations": ["conversations"]},
    "tokens": {"documents": ["documents"], "vocabulary": "tokenizer"},
    "pretrain": {"tokens": "tokens"},
    "sft": {"model": "pretrain", "conversations": ["conversations"]},
    "own-answers": {"model": "sft", "preferences": ["conversations"]},
    "reward": {"model": "sft", "preferences": ["conversations"]},
    "best-of-n": {"model": "sft", "reward": "reward", "prompts": ["conversations"]},
    "dpo": {"model": "sft", "preferences": ["best-of-n"]},
    "ppo": {"model": "sft", "reward": "reward", "prompts": ["conversations"]},
    "evaluate": {"models": ["sft", "dpo", "ppo"], "tests": ["conversations"], "reward": "reward"},
    "report": {
        "stages": [
            "conversations", "tokenizer", "tokens", "pretrain", "sft", "reward", "best-of-n", "dpo", "ppo", "evaluate",
        ]
    },
}  # fmt: skip


@dataclass
class World:
    """The toy artifacts in one folder; each is made when it is first asked for, by whichever process asks."""

    folder: Path

    def __getitem__(self, name: str) -> Artifact:
        """The finished artifact of a stage, `documents` or `conversations`."""
        if not artifact.exists(self.folder / name):
            with (self.folder / ".building").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # several workers of pytest-xdist share the folder
                self._make(name)
        return artifact.load(self.folder / name)

    def _make(self, name: str) -> None:
        if artifact.exists(self.folder / name):
            return
        if name in ("documents", "conversations"):
            write = {"documents": write_corpus, "conversations": write_dialogues}[name]
            make_artifact(self.folder / name, name, write)
            return
        for given in INPUTS[name].values():
            for item in given if isinstance(given, list) else [given]:
                self._make(item)
        recipe.run_stage(name, self.settings(name), self.inputs(name), self.folder / name, seed=7, quiet=True)

    def prepare(self, name: str) -> None:
        """Make what a stage reads."""
        for given in INPUTS[name].values():
            for item in given if isinstance(given, list) else [given]:
                self[item]

    def inputs(self, name: str, **changes: Any) -> dict[str, Any]:
        """Paths of what a stage reads, with changes."""
        found = {
            key: [self.folder / item for item in given] if isinstance(given, list) else self.folder / given
            for key, given in INPUTS[name].items()
        }
        return {**found, **changes}

    def settings(self, name: str, **changes: Any) -> dict[str, Any]:
        """Settings of a stage with changes; `loop={...}` and other groups are merged, not replaced."""
        return merged(SETTINGS[name], changes)

    def run(
        self, name: str, out: Path, *, seed: int = 7, inputs: Mapping[str, Any] | None = None, **changes: Any
    ) -> Artifact:
        """A stage run again into another folder."""
        self.prepare(name)
        return recipe.run_stage(
            name, self.settings(name, **changes), self.inputs(name, **(inputs or {})), out, seed=seed, quiet=True
        )

    def context(self, name: str, out: Path, **changes: Any) -> Context:
        """What the stage's `run` would get, for tests that look inside."""
        self.prepare(name)
        stage = find(name)
        out.mkdir(parents=True, exist_ok=True)
        inputs = {
            key: [artifact.load(item) for item in given] if isinstance(given, list) else artifact.load(given)
            for key, given in self.inputs(name).items()
        }
        settings = stage.settings.parse(self.settings(name, **changes))
        return Context(settings, inputs, out, seed=7, name=name, kind=name, quiet=True)


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with nested changes."""
    result = copy.deepcopy(dict(values))
    for key, value in changes.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result


def make_artifact(target: Path, kind: str, write: Any, **identity: Any) -> Artifact:
    """A hand-made artifact whose files `write(folder)` writes."""
    with artifact.locked(target):
        draft = artifact.begin(target, Identity(kind, "toy", 1, identity, 0))
        assert isinstance(draft, Draft)
        write(draft.path)
        return draft.commit({})


def dialogues(
    folder: Path,
    *,
    sft: Sequence[Conversation] | None = None,
    pairs: Sequence[Preference] | None = None,
    prompts: Sequence[Prompt] | None = None,
    test: Sequence[Prompt] | None = None,
) -> Artifact:
    """A `conversations` artifact with these records and no others."""

    def write(target: Path) -> None:
        if sft is not None:
            write_conversations(target / "sft.parquet", sft)
        if pairs is not None:
            write_preferences(target / "pairs.parquet", pairs)
        if prompts is not None:
            write_prompts(target / "prompts.parquet", prompts)
        if test is not None:
            write_prompts(target / "test.parquet", test)

    return make_artifact(folder, "conversations", write, folder=folder.name)


def question(name: str) -> list[Message]:
    """The prompt about one thing."""
    return [Message("user", f"colour of {name}?" if name.isascii() else f"{name}的颜色？")]


def conversation(number: int, name: str, answer: str) -> Conversation:
    """A conversation of one turn."""
    return Conversation(f"c{number}", [*question(name), Message("assistant", answer)])


def write_corpus(folder: Path) -> None:
    """Sixty short documents in English and Chinese, every tenth held out."""
    names = list(FACTS.items())
    documents = []
    for number in range(60):
        pieces = [names[(number * 5 + i * (1 + number % 7)) % len(names)] for i in range(6)]
        text = " ".join(
            f"the colour of {name} is {colour}." if name.isascii() else f"{name}的颜色是{colour}。"
            for name, colour in pieces
        )
        split = "heldout" if number % 10 == 9 else "train"
        documents.append(Document(f"d{number}", text, source="toy", labels={"split": split}))
    import pyarrow as pa

    write_documents(folder / "shards" / "0.parquet", documents, {"split": pa.string()})


def write_dialogues(folder: Path) -> None:
    """Conversations, pairs, prompts and tests about the facts."""
    items = list(FACTS.items())
    conversations = [conversation(i, *items[i % len(items)]) for i in range(36)]
    two_turns = [
        Conversation(
            f"m{i}",
            [
                *conversation(i, *items[i]).messages,
                *conversation(i, *items[i + 1]).messages,
            ],
        )
        for i in range(4)
    ]
    write_conversations(folder / "sft.parquet", [*conversations, *two_turns])
    write_conversations(folder / "sft_heldout.parquet", conversations[:6])
    write_preferences(folder / "pairs.parquet", pairs(range(48)))
    write_preferences(folder / "pairs_heldout.parquet", pairs(range(100, 116)))
    prompts = [Prompt(f"p{i}", question(name), language=language(name)) for i, (name, _) in enumerate(items * 3)]
    write_prompts(folder / "prompts.parquet", prompts)
    tests = [
        Prompt(f"t{i}", question(name), answer=colour, kind="trained_function", language=language(name))
        for i, (name, colour) in enumerate(items)
    ]
    write_prompts(folder / "test.parquet", tests)


def pairs(numbers: Sequence[int]) -> list[Preference]:
    """The right answer above another thing's answer, or above one that never ended."""
    items = list(FACTS.items())
    found = []
    for number in numbers:
        name, right = items[number % len(items)]
        wrong = items[(number + 1 + number // len(items) % 4) % len(items)][1]
        if number % 3:
            answers, ended, kind = [right, wrong], [True, True], "another"
        else:
            answers, ended, kind = [right, f"{right} {wrong}"], [True, False], "rambling"
        found.append(Preference(f"pair{number}", question(name), answers, kind=kind, ended=ended, source="toy"))
    return found


def language(name: str) -> str:
    """`en` or `zh`."""
    return "en" if name.isascii() else "zh"
