"""Prompt templates as data: a YAML file that a user may copy and change; templates.yaml comes along."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from chatloom.errors import ChatloomError
from chatloom.settings import Settings, nearest, read_yaml

OWN_FILE = Path(__file__).with_name("templates.yaml")
PLACE = re.compile(r"\{([a-z_]+)\}")
NAME = re.compile("[a-z0-9][a-z0-9_-]*")
TERMS, PASSAGE = "terms", "passage"
JOINED_BY = {"zh": "、", "ja": "、"}  # between terms; elsewhere a comma


class Refusals(Settings):
    """How a reply that is not what was asked for is known, in small letters."""

    beginning: tuple[str, ...] = Field((), description="phrases at the very beginning")
    anywhere: tuple[str, ...] = Field((), description="phrases anywhere in the text")


class Template(Settings):
    """One kind of prompt: its weight beside the others and its text in each language."""

    weight: float = 1.0
    texts: dict[str, str]

    @model_validator(mode="before")
    @classmethod
    def _languages_are_keys(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "texts" in values:
            return values
        return {"weight": values.get("weight", 1.0), "texts": {k: v for k, v in values.items() if k != "weight"}}

    def needs_passage(self, language: str) -> bool:
        """Whether the text of a language shows a passage."""
        return PASSAGE in PLACE.findall(self.texts.get(language, ""))


class Templates(Settings):
    """All of a file."""

    templates: dict[str, Template]
    choices: dict[str, dict[str, tuple[str, ...]]] = Field(default_factory=dict)
    refusals: dict[str, Refusals] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _all_places_can_be_filled(self) -> Self:
        if not self.templates:
            raise ValueError("no template is given")
        for name, template in self.templates.items():
            if not NAME.fullmatch(name):
                raise ValueError(f"template `{name}`: a name has small letters, digits, - and _ only")
            if not template.weight > 0:
                raise ValueError(f"template `{name}`: weight {template.weight:g} must be above 0; else leave it out")
            if not template.texts:
                raise ValueError(f"template `{name}` has no text; give one for each language, such as `en: ...`")
            for language, text in template.texts.items():
                self._check(f"template `{name}`, {language}", language, text)
        return self

    def _check(self, where: str, language: str, text: str) -> None:
        places = set(PLACE.findall(text))
        if not places & {TERMS, PASSAGE}:
            raise ValueError(f"{where}: has neither {{terms}} nor {{passage}}, so every prompt would be the same")
        for place in sorted(places - {TERMS, PASSAGE}):
            if not self.choices.get(place, {}).get(language):
                known = [TERMS, PASSAGE, *(key for key, texts in self.choices.items() if texts.get(language))]
                match = nearest(place, known)
                hint = f"did you mean {{{match}}}?" if match else f"give `choices: {{{place}: {{{language}: [...]}}}}`"
                raise ValueError(f"{where}: {{{place}}} has no choices in that language; {hint}")

    @cached_property
    def languages(self) -> tuple[str, ...]:
        """Every language that some template has."""
        return tuple(sorted({language for template in self.templates.values() for language in template.texts}))

    def chosen(self, names: Sequence[str], languages: Sequence[str]) -> Templates:
        """Only the templates of these names and their texts in these languages; empty: all.

        Raises ChatloomError for a name or a language that is not there.
        """
        for name in names:
            if name not in self.templates:
                raise ChatloomError(
                    f"ask.templates: there is no template `{name}`; there are {_listed(self.templates)}"
                )
        for language in languages:
            if language not in self.languages:
                raise ChatloomError(
                    f"ask.languages: no template has a text in `{language}`; there are {_listed(self.languages)}"
                )
        kept: dict[str, Template] = {}
        for name, template in self.templates.items():
            texts = {key: text for key, text in template.texts.items() if not languages or key in languages}
            if texts and (not names or name in names):
                kept[name] = Template(weight=template.weight, texts=texts)
        if not kept:
            raise ChatloomError(
                f"ask.templates, ask.languages: none of {_listed(names)} has a text in {_listed(languages)}"
            )
        return Templates(templates=kept, choices=self.choices, refusals=self.refusals)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def read_templates(path: Path | None = None) -> Templates:
    """The templates of a file, else those that come along. Raises ChatloomError for a file that is not good."""
    path = path or OWN_FILE
    values = read_yaml(path)
    try:
        return Templates.model_validate(values)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            where = ".".join(str(part) for part in item["loc"] if part != "texts")
            lines.append(f"{path}: {where + ': ' if where else ''}{item['msg'].removeprefix('Value error, ')}")
        raise ChatloomError("\n".join(lines)) from None


def filled(text: str, values: Mapping[str, str]) -> str:
    """A template's text with its places filled; what is filled in is not looked at again."""
    return PLACE.sub(lambda found: values[found[1]], text)
