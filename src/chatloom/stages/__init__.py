"""The kinds of stages: `find(kind)` imports the one module that defines a kind and returns its `STAGE`.

Modules are imported when they are asked for, so that `chatloom --help` does not load torch. `CHAINS` are kinds that a
recipe may name in the place of several stages.
"""

from __future__ import annotations

import importlib

from chatloom.errors import ChatloomError
from chatloom.settings import nearest
from chatloom.stage import Chain, Stage

# kind -> (module, what it does in one line), in the order in which a model is made.
MODULES: dict[str, tuple[str, str]] = {
    "documents": ("chatloom.stages.documents", "raw pages -> texts, one document each"),
    "ngram-model": ("chatloom.stages.ngram_model", "reference text -> n-gram language models, for perplexity"),
    "quality-model": ("chatloom.stages.quality_model", "good text and raw text -> a classifier of quality"),
    "labels": ("chatloom.stages.labels", "documents -> columns of labels beside them"),
    "duplicates": ("chatloom.stages.duplicates", "documents -> which are copies, and the split"),
    "selection": ("chatloom.stages.selection", "documents + labels + copies -> the documents that stay"),
    "synthetic": ("chatloom.stages.synthetic", "documents -> topics -> a model's texts about them"),
    "questions": ("chatloom.stages.questions", "cleaned documentation -> questions, answers, pairs and tests"),
    "dialogues": ("chatloom.stages.dialogues", "files of conversations and pairs -> one split by prompt"),
    "tokenizer": ("chatloom.stages.tokenizer", "documents -> vocabulary, by BPE, Unigram or WordPiece"),
    "extend-tokenizer": (
        "chatloom.stages.extend_tokenizer",
        "vocabulary + new documents -> the same vocabulary with more entries",
    ),
    "extend-model": ("chatloom.stages.extend_model", "model + extended vocabulary -> the model with rows for it"),
    "tokens": ("chatloom.stages.tokens", "documents + vocabulary -> memory-mapped token stores"),
    "pretrain": ("chatloom.stages.pretrain", "token store -> base model"),
    "sft": ("chatloom.stages.sft", "base model + conversations -> chat model"),
    "merge-adapter": ("chatloom.stages.merge_adapter", "model + adapter in PEFT's format -> one model"),
    "own-answers": ("chatloom.stages.own_answers", "chat model + ranked answers -> pairs with its own wrong answers"),
    "reward": ("chatloom.stages.reward", "chat model + ranked answers -> reward model"),
    "best-of-n": ("chatloom.stages.best_of_n", "chat model + reward model -> sampled answers with rewards, and pairs"),
    "dpo": ("chatloom.stages.dpo", "chat model + pairs -> aligned model, without a sampler in the loop"),
    "ppo": ("chatloom.stages.ppo", "chat model + reward model -> aligned model, by reinforcement learning"),
    "evaluate": ("chatloom.stages.evaluate", "models + test prompts -> one table of scores, and answers side by side"),
    "report": ("chatloom.stages.report", "all of a run -> one self-contained HTML page"),
}

# Kinds that stand for several stages.
CHAINS: dict[str, Chain] = {
    "corpus": Chain(
        "corpus",
        "raw pages -> the documents that stay, in four stages",
        {
            "documents": {},
            "labels": {"documents": "documents"},
            "duplicates": {"documents": "documents"},
            "selection": {"documents": "documents", "labels": "labels", "duplicates": "duplicates"},
        },
        shared=("engine",),
    ),
}


def kinds() -> dict[str, str]:
    """Every kind of stage with what it does in one line."""
    return {kind: about for kind, (_, about) in MODULES.items()}


def find(kind: str) -> Stage:
    """The stage of a kind; raises ChatloomError naming the nearest kind when there is none, and for a chain."""
    if kind in CHAINS:
        listed = ", ".join(f"`{name}`" for name in CHAINS[kind].links)
        raise ChatloomError(f"`{kind}` stands for the stages {listed}; name it in a recipe, or one of them here")
    if kind not in MODULES:
        known = [*CHAINS, *MODULES]
        match = nearest(kind, known)
        hint = f"did you mean `{match}`?" if match else f"known kinds are {', '.join(f'`{name}`' for name in known)}"
        raise ChatloomError(f"there is no kind of stage called `{kind}`; {hint}")
    stage = importlib.import_module(MODULES[kind][0]).STAGE
    if not isinstance(stage, Stage) or stage.kind != kind:
        raise TypeError(f"{MODULES[kind][0]}.STAGE must be the Stage of kind `{kind}`, found {stage!r}")
    clash = ({*stage.inputs} & {*stage.settings.model_fields}) | (
        RESERVED & {*stage.inputs, *stage.settings.model_fields}
    )
    if clash:
        raise TypeError(f"{MODULES[kind][0]}: {sorted(clash)} cannot be the name of an input or a setting here")
    return stage


# Keys of a stage in a recipe (or of a settings file) that are neither inputs nor settings.
RESERVED = frozenset({"stage", "seed", "about", "out"})
