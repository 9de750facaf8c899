"""The one table that says which way of aligning was worth it: methods side by side on the same prompts.

Goes in: for each method a list of scored answers, plain dicts

    prompt      id, the same for every method
    f1, exact   gold scores in 0..1; None where there is no true answer
    reward, length (tokens), ended, kl (nats), refused, polite      optional, averaged where present
    language, kind      optional labels, by which the table is cut
    cluster     optional; prompts about one fact share it

Comes out: rows of plain dicts, one per method and group of prompts: first the headline (all prompts of
`headline_kinds`, and named after them), then these by language, then each other kind alone. Several answers of one
method to a prompt (samples, seeds) are averaged first.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from chatloom.evaluation.statistics import (
    EvaluationError,
    Interval,
    mean_or_none,
    paired_bootstrap,
    sign_test,
    win_rate,
)
from chatloom.reporting.tables import Column

Answer = Mapping[str, Any]

LANGUAGES = {"en": "English", "zh": "Chinese · 中文"}
KINDS = {
    "trained_function": "Trained functions, new wording · 训练过的函数",
    "heldout_function": "Held-out functions · 未见过的函数",
    "invented_name": "Invented names · 虚构的名字",
    "multi_turn": "Inside a conversation · 多轮对话",
}
HEADLINE = "All prompts · 全部"

COLUMNS = [
    Column("method", "method"),
    Column("kl", "KL to SFT", ".2f",
           about="nats per answer between the method and the SFT model; for best-of-n the analytic bound"),
    Column("reward", "reward", ".2f",
           about="mean score by the reward model: what the method was trained or chosen for"),
    Column("f1", "gold F1", ".1%", low="f1_low", high="f1_high", best="max",
           about="token F1 against the true answer, which no training stage saw as a score; 95 % interval"),
    Column("exact", "exact", ".1%", best="max", about="answers that equal the true answer"),
    Column("polite", "polite", ".1%", low="polite_low", high="polite_high", best="max",
           about="answers that a plain rule on words calls polite"),
    Column("refused", "says unknown", ".0%", about="answers that say the name is not known"),
    Column("length", "tokens", ".1f", about="mean length of an answer"),
    Column("ended", "ended", ".0%", best="max", about="answers that came to an end by themselves"),
    Column("f1_gain", "gain over SFT", "+.1%", low="f1_gain_low", high="f1_gain_high",
           about="gold F1 minus that of the baseline on the same prompts; 95 % paired bootstrap interval"),
    Column("polite_gain", "gain over SFT", "+.1%", low="polite_gain_low", high="polite_gain_high",
           about="share of polite answers minus that of the baseline; 95 % paired bootstrap interval"),
    Column("win_rate", "wins vs SFT", ".1%", low="win_low", high="win_high",
           about="prompts on which the score beats the baseline's, ties one half; 95 % paired bootstrap interval"),
]  # fmt: skip


def compare(
    answers: Mapping[str, Sequence[Answer]],
    *,
    baseline: str = "sft",
    headline_kinds: Sequence[str] | None = None,
    kl: Mapping[str, float] | None = None,
    score: str = "f1",
    resamples: int = 10_000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Rows of the comparison for every group and method, in the order the methods are given.

    headline_kinds: kinds of prompts that count in the headline and the language groups (default: all). kl: nats for
    methods whose KL is known as a whole, such as log n - (n - 1) / n for best-of-n. Gains and wins are by `score`
    (gold F1 unless told otherwise) against `baseline`, paired by prompt; prompts with the same `cluster` are
    resampled together. Raises EvaluationError if the baseline is missing, has no answers, or two methods answered
    different prompts.
    """
    if baseline not in answers:
        raise EvaluationError(f"baseline {baseline!r} is not among the methods {', '.join(map(repr, answers))}")
    prompts = {method: _by_prompt(method, given) for method, given in answers.items()}
    _check_same_prompts(prompts, baseline)
    reference = prompts[baseline]
    rows = []
    for group, members in _groups(reference, headline_kinds):
        for method, found in prompts.items():
            title = f"{group} ({len(members):,})"
            row: dict[str, Any] = {"group": group, "group_title": title, "method": method}
            row.update(_means([found[prompt] for prompt in members]))
            if kl is not None and method in kl:
                row["kl"] = float(kl[method])
            row.update(_against(found, reference, members, score, method == baseline, resamples, seed))
            rows.append(row)
    return rows


def visible_columns(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column] = COLUMNS) -> list[Column]:
    """The columns of the table that hold anything in these rows."""
    return [column for column in columns if any(row.get(column.key) is not None for row in rows)]


def _by_prompt(method: str, answers: Sequence[Answer]) -> dict[Hashable, dict[str, Any]]:
    """Answers averaged by prompt, keeping the prompt's labels."""
    if not answers:
        raise EvaluationError(f"method {method!r} has no answers to compare")
    gathered: dict[Hashable, list[Answer]] = {}
    for answer in answers:
        missing = {"prompt", "f1", "exact"} - set(answer)
        if missing:
            raise EvaluationError(
                f"an answer of {method!r} lacks {', '.join(sorted(missing))}; it has {sorted(answer)}"
            )
        gathered.setdefault(answer["prompt"], []).append(answer)
    numbers = ("f1", "exact", "reward", "length", "ended", "kl", "refused", "polite")
    return {
        prompt: {
            **{label: group[0].get(label, "") for label in ("language", "kind")},
            "cluster": group[0].get("cluster", prompt),
            **{name: mean_or_none([answer.get(name) for answer in group]) for name in numbers},
        }
        for prompt, group in gathered.items()
    }


def _check_same_prompts(prompts: Mapping[str, Mapping[Hashable, Any]], baseline: str) -> None:
    expected = set(prompts[baseline])
    for method, found in prompts.items():
        missing, extra = expected - set(found), set(found) - expected
        if missing or extra:
            example = next(iter(missing or extra))
            raise EvaluationError(
                f"method {method!r} and {baseline!r} answered different prompts ({len(missing)} missing, {len(extra)} "
                f"extra, such as {example!r}): only answers to the same prompts can be compared"
            )


def _groups(
    reference: Mapping[Hashable, Mapping[str, Any]], headline_kinds: Sequence[str] | None
) -> list[tuple[str, list[Hashable]]]:
    kinds = sorted({str(answer["kind"]) for answer in reference.values()}, key=lambda kind: (_rank(KINDS, kind), kind))
    headline = set(kinds if headline_kinds is None else headline_kinds)
    main = [prompt for prompt, answer in reference.items() if answer["kind"] in headline]
    if not main:
        raise EvaluationError(f"no prompt is of the kinds {sorted(headline)}; the kinds found are {kinds}")
    headline_name = (
        HEADLINE if headline == set(kinds) else " + ".join(KINDS.get(kind, kind) for kind in kinds if kind in headline)
    )
    groups = [(headline_name, main)]
    languages = {str(reference[prompt]["language"]) for prompt in main}
    if len(languages) > 1:
        for language in sorted(languages, key=lambda language: (_rank(LANGUAGES, language), language)):
            members = [prompt for prompt in main if reference[prompt]["language"] == language]
            groups.append((LANGUAGES.get(language, language), members))
    if len(kinds) > 1:
        for kind in (kind for kind in kinds if {kind} != headline):
            members = [prompt for prompt, answer in reference.items() if answer["kind"] == kind]
            groups.append((KINDS.get(kind, kind), members))
    return groups


def _means(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = ("kl", "reward", "f1", "exact", "polite", "refused", "length", "ended")
    return {"n": len(answers), **{name: mean_or_none([answer[name] for answer in answers]) for name in names}}


def _against(
    found: Mapping[Hashable, Mapping[str, Any]],
    reference: Mapping[Hashable, Mapping[str, Any]],
    members: Sequence[Hashable],
    score: str,
    is_baseline: bool,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Intervals of a method's score and, if it is not the baseline itself, of its gain and its wins."""
    scores = [found[prompt][score] for prompt in members]
    base = [reference[prompt][score] for prompt in members]
    if any(value is None for value in scores + base):
        return {}  # prompts without a true answer have no gold score
    clusters = [reference[prompt]["cluster"] for prompt in members]
    own = paired_bootstrap(scores, clusters=clusters, resamples=resamples, seed=seed)
    result: dict[str, Any] = {f"{score}_low": own.low, f"{score}_high": own.high}
    if is_baseline:
        return result
    gain = paired_bootstrap([a - b for a, b in zip(scores, base)], clusters=clusters, resamples=resamples, seed=seed)
    wins = win_rate(scores, base, clusters=clusters, resamples=resamples, seed=seed)
    return {
        **result,
        **_named(f"{score}_gain", gain),
        "win_rate": wins.rate,
        "win_low": wins.interval.low,
        "win_high": wins.interval.high,
        "wins": wins.wins,
        "ties": wins.ties,
        "losses": wins.losses,
        "p_value": sign_test([a - b for a, b in zip(scores, base)]),
    }


def _named(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _rank(names: Mapping[str, str], name: str) -> int:
    return list(names).index(name) if name in names else len(names)
