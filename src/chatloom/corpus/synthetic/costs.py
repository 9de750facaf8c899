"""How long prompts and replies will be, before there are any."""

from __future__ import annotations

from chatloom.corpus.synthetic.settings import AskSettings, ClusterSettings
from chatloom.corpus.synthetic.templates import Templates

# Instructions of the templates that come along, a word of a passage, and the part of `max_tokens` that replies use.
INSTRUCTION_TOKENS, TOKENS_A_WORD, USED_SHARE = 170.0, 1.5, 0.5


def prompt_tokens(templates: Templates, clusters: ClusterSettings) -> float:
    """Mean tokens of a prompt: the instructions, and in some templates a passage."""
    weights = {name: template.weight for name, template in templates.templates.items()}
    with_passage = sum(
        weights[name]
        for name, template in templates.templates.items()
        if any(template.needs_passage(language) for language in template.texts)
    )
    return INSTRUCTION_TOKENS + with_passage / sum(weights.values()) * TOKENS_A_WORD * clusters.passage_words


def reply_tokens(ask: AskSettings) -> float:
    """Mean tokens of a reply."""
    return USED_SHARE * ask.max_tokens
