"""The limits that a selection holds numbers against, by label: what its figures draw in."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from chatloom.corpus.selection.choice import (
    KEEP,
    LANGUAGE,
    RULE,
    RULE_LABEL,
    SelectionSettings,
    active_limits,
    shortened,
)
from chatloom.corpus.selection.expressions import Expression
from chatloom.corpus.text.rules import limits_of

FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "=="}
SIGNS: dict[type[ast.cmpop], str] = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "=="}


def limits_by_label(settings: SelectionSettings, languages: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Label -> limits: `value`, `stays` (">=" where values from it upwards stay ...), `language` ("" for all), `rule`.

    Rules by language; the confidence of the language; and comparisons of a label with a number inside conditions.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for name, by_language in active_limits(settings.rules).items():
        for language in languages:
            for bound, sign in zip(limits_of(language, by_language), (">=", "<=")):
                if bound is not None:
                    row = {"value": bound, "stays": sign, "language": language, "rule": [RULE, name]}
                    found.setdefault(RULE_LABEL + name, []).append(row)
    if settings.language.min_confidence:
        row = {
            "value": settings.language.min_confidence,
            "stays": ">=",
            "language": "",
            "rule": [LANGUAGE, "uncertain_language"],
        }
        found["language_confidence"] = [row]
    for text in dict.fromkeys([settings.keep, *(case.keep for case in settings.cases)]):
        for part in Expression.parse(text).parts() if text else ():
            for name, sign, value in comparisons(part.text):
                row = {"value": value, "stays": sign, "language": "", "rule": [KEEP, shortened(part.text)]}
                found.setdefault(name, []).append(row)
    return found


def comparisons(condition: str) -> Iterator[tuple[str, str, float]]:
    """(label, sign, number) of every comparison of a label with a number in a condition, wherever it stands in it.

    `not (a > 1)` gives (a, ">", 1): what it means for a document is said by the whole condition.
    """
    for node in ast.walk(ast.parse(condition.strip(), mode="eval")):
        if not isinstance(node, ast.Compare):
            continue
        terms = [node.left, *node.comparators]
        for first, op, second in zip(terms, node.ops, terms[1:]):
            sign = SIGNS.get(type(op))
            if sign is None:
                continue
            for term, other, shown in ((first, second, sign), (second, first, FLIPPED[sign])):
                name, value = _label(term), _number(other)
                if name is not None and value is not None:
                    yield name, shown, value


def _label(node: ast.expr) -> str | None:
    """The label that a term is: itself, or `default(label, ...)`."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "default":
        return _label(node.args[0])
    return None


def _number(node: ast.expr) -> float | None:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _number(node.operand)
        return None if value is None else -value
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return float(node.value)
    return None
