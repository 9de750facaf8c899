"""What a denoising objective means for a plan: whether the vocabulary can serve it, and what it makes of texts."""

from __future__ import annotations

from collections.abc import Sequence

from chatloom.artifact import Artifact
from chatloom.stage import Plan
from chatloom.tokens.objective import Expected, ObjectiveSettings, expected, missing_tokens
from chatloom.tokens.reserved import MODE_TOKENS, SENTINELS, mode_ids, sentinel_ids
from chatloom.tokens.vocabulary import Vocabulary

USUAL_SENTINELS = 100  # T5's, where nothing tells how many a vocabulary will have


def planned_objective(
    settings: ObjectiveSettings, row_length: int, made: Sequence[Artifact], coming: Sequence[Plan]
) -> Expected | str | None:
    """What the objective makes of texts, or why it cannot work; None for language modelling.

    made: token stores that are there; coming: plans of those that are not. Raises DenoisingError where no text fits.
    """
    settings.check()
    if not settings.is_denoising:
        return None
    sentinels, modes = _reserved(made, coming)
    if sentinels is None:
        return expected(settings, row_length, USUAL_SENTINELS)
    return missing_tokens(settings, sentinels, modes) or expected(settings, row_length, sentinels)


def _reserved(made: Sequence[Artifact], coming: Sequence[Plan]) -> tuple[int | None, int]:
    """Sentinels and mode tokens of the tokens' vocabulary; None where it is not made and no plan tells."""
    if made:
        vocabulary = Vocabulary.load(made[0].path)
        return len(sentinel_ids(vocabulary)), len(mode_ids(vocabulary))
    told = [int(line.value) for plan in coming for line in plan.lines if line.name == SENTINELS]
    return (told[0], len(MODE_TOKENS) * bool(told[0])) if told else (None, 0)
