"""Labellers by name: those that come with chatloom, and a user's own as `module:function` or `module:Class`.

A module is imported when its labeller is asked for, so that one that is not used need not be installed.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pyarrow as pa

from chatloom.corpus.labelling import SPANS, Labeller, NoSettings
from chatloom.corpus.record import Document
from chatloom.errors import ChatloomError
from chatloom.settings import nearest

HERE = "chatloom.corpus.labellers"
LABELLERS: dict[str, str] = {  # name -> class in the module of that name here, or module:Class
    "language": "Language",
    "length": "Length",
    "rules": "Rules",
    "url": "Url",
    "c4": "C4",
    "sentences": "Sentences",
    "code": "Code",
    "tex": "Tex",
    "question_answer": "QuestionAnswer",
    "sensitive": "Sensitive",
    "personal_data": "PersonalData",
    "perplexity": "Perplexity",
    "quality": "Quality",
    "contamination": "chatloom.corpus.duplicates.contamination:Contamination",
}
TYPES: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    list[int]: SPANS,
}


def load_labeller(use: str) -> type[Labeller[Any]]:
    """The class of a labeller: a name of LABELLERS, or `module:Class`, or `module:function` (see `from_function`).

    A labeller from outside has its source file among its `files`: its columns are made again when the file changes.
    Raises ChatloomError for an unknown name, a module that cannot be imported, and what is not a labeller.
    """
    if ":" not in use:
        if use not in LABELLERS:
            near = nearest(use, LABELLERS)
            cure = f"did you mean `{near}`?" if near else f"known are {', '.join(LABELLERS)}"
            raise ChatloomError(f"labeller `{use}`: there is none of this name; {cure} (own ones are `module:name`)")
        where = LABELLERS[use] if ":" in LABELLERS[use] else f"{HERE}.{use}:{LABELLERS[use]}"
        module_name, _, name = where.partition(":")
        known: type[Labeller[Any]] = getattr(importlib.import_module(module_name), name)
        return known
    module_name, _, name = use.partition(":")
    found = getattr(_import(module_name, use), name, None)
    if inspect.isclass(found) and issubclass(found, Labeller):
        missing = [part for part in ("name", "columns", "Settings") if not hasattr(found, part)]
        if missing or inspect.isabstract(found):
            raise ChatloomError(
                f"labeller `{use}`: the class lacks {', '.join(missing) or 'label()'}; see docs/labellers.md"
            )
        return _with_source(found)
    if inspect.isfunction(found):
        return from_function(found)
    if found is None:
        raise ChatloomError(f"labeller `{use}`: the module {module_name} has no `{name}`")
    raise ChatloomError(
        f"labeller `{use}`: `{name}` is a {type(found).__name__}; expected a function of a document or a class derived "
        "from chatloom.corpus.labelling.Labeller"
    )


def from_function(function: Callable[[Document], Any]) -> type[Labeller[NoSettings]]:
    """A labeller of one column, named as the function, of the type that the function says it returns.

    The type is str, int, float, bool or list[int] (spans), `| None` or not. Raises ChatloomError for any other.
    """
    name = function.__name__
    where = f"labeller `{function.__module__}:{name}`"
    try:
        returned = typing.get_type_hints(function).get("return")
    except NameError as error:
        raise ChatloomError(f"{where}: its annotations cannot be read: {error}") from None
    kinds = [kind for kind in typing.get_args(returned) if kind is not type(None)]
    kind = kinds[0] if len(kinds) == 1 and returned != list[int] else returned
    if kind not in TYPES:
        raise ChatloomError(
            f"{where}: returns {returned!r}; say with `-> float` (or str, int, bool, list[int]) what the label is"
        )

    class FromFunction(Labeller[NoSettings]):
        columns: Mapping[str, pa.DataType] = {name: TYPES[kind]}
        Settings = NoSettings

        def label(self, documents: Sequence[Document]) -> list[dict[str, Any]]:
            return [{name: function(document)} for document in documents]

    FromFunction.name = name
    FromFunction.__name__ = FromFunction.__qualname__ = name
    FromFunction.__module__, FromFunction.__doc__ = function.__module__, function.__doc__
    return _with_source(FromFunction, function)


def _with_source(kind: type[Labeller[Any]], of: Any = None) -> type[Labeller[Any]]:
    file = inspect.getsourcefile(of or kind)
    if file is None:
        return kind
    source = Path(file)

    class WithSource(kind):  # type: ignore[valid-type, misc]
        source_file: ClassVar[Path] = source

        def files(self) -> Sequence[Path]:
            return (*super().files(), self.source_file)

    WithSource.__name__, WithSource.__qualname__ = kind.__name__, kind.__qualname__
    WithSource.__module__, WithSource.__doc__ = kind.__module__, kind.__doc__
    return WithSource


def _import(name: str, use: str) -> ModuleType:
    try:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            here = str(Path.cwd())
            if error.name != name.partition(".")[0] or here in sys.path:
                raise
            sys.path.append(here)  # the command's own start does not put the working folder there
            return importlib.import_module(name)
    except ImportError as error:
        raise ChatloomError(
            f"labeller `{use}`: cannot import {name}: {error}; put {name.replace('.', '/')}.py into the working "
            "folder or install it, and give it as module:name"
        ) from error
    except (Exception, SystemExit) as error:  # the user's own code: anything may be wrong with it
        raise ChatloomError(
            f"labeller `{use}`: cannot import {name}: {type(error).__name__}: {error}; mend the module"
        ) from error
