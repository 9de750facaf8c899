"""Labels `question_answer`: score, rank and grade of an answer or a thread, from what its metadata say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from pydantic import Field

from chatloom.corpus.labelling import Labeller
from chatloom.corpus.record import Document
from chatloom.settings import Settings


class QuestionAnswerSettings(Settings):
    """Keys of the metadata, where a dump calls them otherwise."""

    score: str = Field(default="score", description="key of the votes of this answer (or of a thread's question)")
    accepted: str = Field(default="accepted", description="key of whether the asker accepted this answer")
    answer_scores: str = Field(
        default="answer_scores", description="key of the votes of all answers to the same question, this one's included"
    )
    answers: str = Field(
        default="answers", description="key of a thread's answers: a list of mappings with a score, or of scores"
    )


class QuestionAnswer(Labeller[QuestionAnswerSettings]):
    """Question-and-answer sites by votes, as LLaMA used Stack Exchange (Touvron et al. 2023, section 2.1: answers
    sorted from the highest to the lowest score).

    A document is one answer, {"score": 12, "accepted": true, "answer_scores": [12, 3, 3]}, or one thread,
    {"score": 40, "answers": [{"score": 3}, {"score": 12, "accepted": true}]}.

    question_answer_score: votes of the answer, of a thread its question's; question_answer_best: the highest votes
    among the answers known; question_answer_answers: how many are known; question_answer_rank: 1 for the answer with
    most votes, equal votes share a rank; question_answer_order: a thread's answers from most to fewest votes (places
    in its list); question_answer_accepted: whether the asker accepted it; question_answer_grade:
    round(log2(1 + votes)) and 1 more where accepted, -1 for negative votes (Askell et al. 2021, arXiv 2112.00861), of a
    thread that of its best answer.
    All are None for a document without such metadata.
    """

    name = "question_answer"
    columns: Mapping[str, pa.DataType] = {
        "question_answer_score": pa.int64(),
        "question_answer_best": pa.int64(),
        "question_answer_answers": pa.int64(),
        "question_answer_rank": pa.int64(),
        "question_answer_order": pa.list_(pa.int32()),
        "question_answer_accepted": pa.bool_(),
        "question_answer_grade": pa.int64(),
    }
    Settings = QuestionAnswerSettings

    def label(self, documents: Sequence[Document]) -> list[dict[str, Any]]:
        """Labels of each document; values that are no whole numbers count as not there."""
        return [self._label(document.metadata) for document in documents]

    def _label(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        row: dict[str, Any] = dict.fromkeys(self.columns)
        score, accepted = _votes(metadata.get(self.settings.score)), metadata.get(self.settings.accepted)
        answers = metadata.get(self.settings.answers)
        row["question_answer_score"] = score
        if isinstance(answers, list) and answers:
            self._thread(row, answers)
            return row
        if isinstance(accepted, bool):
            row["question_answer_accepted"] = accepted
        others = metadata.get(self.settings.answer_scores)
        scores = [votes for item in others if (votes := _votes(item)) is not None] if isinstance(others, list) else []
        if scores:
            row["question_answer_best"], row["question_answer_answers"] = max(scores), len(scores)
        if score is not None:
            row["question_answer_rank"] = 1 + sum(other > score for other in scores) if scores else None
            row["question_answer_grade"] = grade(score, accepted is True)
        return row

    def _thread(self, row: dict[str, Any], answers: Sequence[Any]) -> None:
        scored = []
        for place, answer in enumerate(answers):
            is_record = isinstance(answer, Mapping)
            votes = _votes(answer.get(self.settings.score) if is_record else answer)
            accepted = is_record and answer.get(self.settings.accepted) is True
            if votes is not None:
                scored.append((-votes, place, accepted))
        row["question_answer_answers"] = len(answers)
        if not scored:
            return
        scored.sort(key=lambda item: item[:2])
        best = -scored[0][0]
        row["question_answer_best"] = best
        row["question_answer_order"] = [place for _, place, _ in scored]
        row["question_answer_accepted"] = any(accepted for _, _, accepted in scored)
        row["question_answer_grade"] = max(grade(-negative, accepted) for negative, _, accepted in scored)


def grade(votes: int, accepted: bool) -> int:
    """round(log2(1 + votes)), 1 more where the asker accepted, -1 for negative votes (Askell et al. 2021)."""
    return -1 if votes < 0 else round(math.log2(1 + votes)) + int(accepted)


def _votes(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.strip().lstrip("+-").isascii() and value.strip().lstrip("+-").isdigit():
        return int(value.strip())
    return None
