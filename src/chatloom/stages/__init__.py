"""The kinds of stages: `find(kind)` imports the one module that defines a kind and returns its `STAGE`.

Modules are imported when they are asked for, so that `chatloom --help` does not load torch.
"""

from __future__ import annotations

import importlib

from chatloom.errors import ChatloomError
from chatloom.settings import nearest
from chatloom.stage import Stage

# kind -> (module, what it does in one line), in the order in which a model is made.
MODULES: dict[str, tuple[str, str]] = {
    "corpus": ("chatloom.stages.corpus", "raw pages -> cleaned, labelled documents"),
    "ngram-model": ("chatloom.stages.ngram_model", "reference text -> n-gram language models, for perplexity"),
    "quality-model": ("chatloom.stages.quality_model", "good text and raw text -> a classifier of quality"),
    "documents": ("chatloom.stages.documents", "raw pages -> texts, one document each"),
    "labels": ("chatloom.stages.labels", "documents -> columns of labels beside them"),
    "duplicates": ("chatloom.stages.duplicates", "documents -> which are copies, and the split"),
    "selection": ("chatloom.stages.selection", "documents + labels + copies -> the documents that stay"),
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
    "own-answers": ("chatloom.stages.own_answers", "chat model + ranked answers -> pairs with its own wrong answers"),
    "reward": ("chatloom.stages.reward", "chat model + ranked answers -> reward model"),
    "best-of-n": ("chatloom.stages.best_of_n", "chat model + reward model -> sampled answers with rewards, and pairs"),
    "dpo": ("chatloom.stages.dpo", "chat model + pairs -> aligned model, without a sampler in the loop"),
    "ppo": ("chatloom.stages.ppo", "chat model + reward model -> aligned model, by reinforcement learning"),
    "evaluate": ("chatloom.stages.evaluate", "models + test prompts -> one table of scores, and answers side by side"),
    "report": ("chatloom.stages.report", "all of a run -> one self-contained HTML page"),
}


def kinds() -> dict[str, str]:
    """Every kind of stage with what it does in one line."""
    return {kind: about for kind, (_, about) in MODULES.items()}


def find(kind: str) -> Stage:
    """The stage of a kind; raises ChatloomError naming the nearest kind when there is none."""
    if kind not in MODULES:
        match = nearest(kind, MODULES)
        hint = f"did you mean `{match}`?" if match else f"known kinds are {', '.join(f'`{name}`' for name in MODULES)}"
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
