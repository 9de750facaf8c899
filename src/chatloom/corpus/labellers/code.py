"""Labels `code`: licence, language, line lengths and letters of a source file, and whether a program wrote it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from chatloom.corpus.labellers.url import split_url
from chatloom.corpus.labelling import Labeller, NoSettings
from chatloom.corpus.record import Document
from chatloom.corpus.text import characters

HEADER_CHARACTERS = 6000
GENERATED_LINES = 10
SPDX = re.compile(r"SPDX-License-Identifier:\s*([A-Za-z0-9.+()\- ]+)")
# Short phrases that only the licence named has; the first that fits decides, so that the narrower stand first.
LICENCES = [
    (name, re.compile(pattern.lower()))  # of text in lower case
    for name, pattern in (
        ("AGPL-3.0", r"GNU Affero General Public License|\bAGPL\b"),
        ("LGPL-3.0", r"GNU Lesser General Public License.{0,120}version 3|LGPL-?v?3"),
        ("LGPL-2.1", r"GNU (?:Lesser|Library) General Public License|\bLGPL\b"),
        ("GPL-3.0", r"GNU General Public License.{0,160}version 3|GPL-?v?3"),
        ("GPL-2.0", r"GNU General Public License|\bGPL-?v?2\b|\bGNU GPL\b"),
        ("Apache-2.0", r"Apache License,? (?:Version )?2\.0|apache\.org/licenses/LICENSE-2\.0"),
        ("MPL-2.0", r"Mozilla Public License,? v(?:ersion|\.) ?2\.0|mozilla\.org/MPL/2\.0"),
        ("EPL-2.0", r"Eclipse Public License.{0,20}2\.0"),
        ("EPL-1.0", r"Eclipse Public License"),
        ("BSL-1.0", r"Boost Software License"),
        ("ISC", r"Permission to use, copy, modify, and(?:/or)? distribute this software for any purpose"),
        ("BSD-3-Clause", r"Neither the names? of.{0,120}may be used to endorse|\bBSD[- ]3[- ]Clause|New BSD License"),
        ("BSD-2-Clause", r"Redistributions of source code must retain|\bBSD[- ]2[- ]Clause|BSD-style licen[cs]e"),
        ("MIT", r"Permission is hereby granted, free of charge|\bMIT Licen[cs]e|Licensed under (?:the )?MIT\b"),
        ("MulanPSL-2.0", r"Mulan PSL v2|木兰宽松许可证"),
        ("Unlicense", r"released into the public domain|unlicense\.org"),
        ("CC0-1.0", r"CC0 1\.0|creativecommons\.org/publicdomain/zero"),
        ("Zlib", r"provided 'as-is', without any express or implied warranty"),
        (
            "proprietary",
            r"\bProprietary and confidential\b|unauthori[sz]ed copying.{0,60}prohibited",
        ),
    )
]
GENERATED = re.compile(
    r"^\W*(?:(?:code|file|source) )?generated (?:by|from|with) |(?:file|code|source) (?:is|was|has been) generated"
    r"|\bauto(?:matically|[- ])?\s?generated|@generated\b|\bmachine[- ]generated"
    r"|\bgenerated .{0,60}do not (?:edit|modify)|\bdo not (?:edit|modify|change).{0,40}generated|自动生成|自動生成",
    re.IGNORECASE,
)
LICENCE_HINTS = (
    "licen",
    "permission",
    "redistribut",
    "warranty",
    "gpl",
    "public domain",
    "cc0",
    "confidential",
    "许可证",
)
GENERATED_HINTS = ("generated", "自动生成", "自動生成")
LANGUAGES = {
    extension: language
    for language, extensions in {
        "python": "py pyi pyx", "c": "c h", "c++": "cc cpp cxx hpp hh hxx", "java": "java", "go": "go", "rust": "rs",
        "javascript": "js mjs cjs jsx", "typescript": "ts tsx", "ruby": "rb", "php": "php", "c#": "cs",
        "swift": "swift", "kotlin": "kt kts", "scala": "scala", "shell": "sh bash zsh", "powershell": "ps1",
        "perl": "pl pm", "lua": "lua", "r": "r", "julia": "jl", "haskell": "hs", "ocaml": "ml mli", "erlang": "erl",
        "elixir": "ex exs", "clojure": "clj", "lisp": "lisp el", "scheme": "scm", "fortran": "f f90 f95", "matlab": "m",
        "sql": "sql", "html": "html htm", "css": "css scss less", "xml": "xml", "json": "json", "yaml": "yaml yml",
        "toml": "toml", "markdown": "md", "restructuredtext": "rst", "tex": "tex sty cls", "assembly": "s asm",
        "cuda": "cu cuh", "dart": "dart", "verilog": "v sv", "vhdl": "vhd vhdl", "groovy": "groovy gradle",
        "notebook": "ipynb", "protobuf": "proto",
    }.items()
    for extension in extensions.split()
}  # fmt: skip
NAMES = {"makefile": "makefile", "dockerfile": "dockerfile", "cmakelists.txt": "cmake", "rakefile": "ruby"}
PATHS = ("path", "file", "filename", "name", "max_stars_repo_path")  # keys of metadata that may hold a file's path


class Code(Labeller[NoSettings]):
    """What code corpora filter by: Chen et al. 2021 (Codex, arXiv 2107.03374, section 3.1), Li et al. 2023 (StarCoder,
    arXiv 2305.06161, section 3), RedPajama's GitHub rules. Usual limits: docs/labellers.md.

    code_language: by the file's extension (metadata `path`, `file`, `filename`, `name`, or the address), None where
    unknown; code_licence: SPDX name from the file's header (first 6,000 characters), None where none was recognised
    (a GPL without a version counts as the older); code_generated: whether the first or last ten lines say that a
    program wrote it; code_line_mean, code_line_max: characters a line; code_alphanumeric_share,
    code_alphabetic_share: of all characters.
    """

    name = "code"
    columns: Mapping[str, pa.DataType] = {
        "code_language": pa.string(),
        "code_licence": pa.string(),
        "code_generated": pa.bool_(),
        "code_line_mean": pa.float64(),
        "code_line_max": pa.int64(),
        "code_alphanumeric_share": pa.float64(),
        "code_alphabetic_share": pa.float64(),
    }
    Settings = NoSettings

    def label(self, documents: Sequence[Document]) -> list[dict[str, Any]]:
        """Measures of each document, taken as source code."""
        return [self._label(document) for document in documents]

    def _label(self, document: Document) -> dict[str, Any]:
        text = document.text
        lines = list(map(len, text.split("\n")))
        table = characters.classes()
        found = table.of[characters.code_points(text)]
        n = max(len(text), 1)
        return {
            "code_language": programming_language(document),
            "code_licence": licence(text),
            "code_generated": is_generated(text),
            "code_line_mean": sum(lines) / len(lines),
            "code_line_max": max(lines),
            "code_alphanumeric_share": int(table.with_flag(characters.ALPHANUMERIC)[found].sum()) / n,
            "code_alphabetic_share": int(table.with_flag(characters.LETTER)[found].sum()) / n,
        }


def programming_language(document: Document) -> str | None:
    """A file's language by its name's ending, None where there is no name or no known ending."""
    names = [value for key in PATHS if isinstance(value := document.metadata.get(key), str)]
    names += [split_url(document.url)[1].partition("?")[0]] if document.url else []
    for path in names:
        last = path.replace("\\", "/").rpartition("/")[2].lower()
        found = NAMES.get(last) or (LANGUAGES.get(last.rpartition(".")[2]) if "." in last else None)
        if found:
            return found
    return None


def licence(text: str) -> str | None:
    """SPDX name of the licence that a file's header gives, `A OR B` where it gives several, None for none."""
    header = text[:HEADER_CHARACTERS]
    spdx = SPDX.search(header)
    if spdx:
        return " ".join(spdx[1].split()) or None
    lowered = header.lower()
    if not any(hint in lowered for hint in LICENCE_HINTS):
        return None
    plain = " ".join(COMMENT.sub(" ", lowered).split())  # a phrase may run over the lines of a comment
    return next((name for name, pattern in LICENCES if pattern.search(plain)), None)


COMMENT = re.compile(r"^[ \t]*(?:#+|//+|/?\*+/?|--|;+|%+|\.\.|rem\b)[ \t]?", re.MULTILINE)


def is_generated(text: str) -> bool:
    """Whether the first or the last lines say that a program wrote the file."""
    lines = text.split("\n")
    ends = [line[:1000] for line in lines[:GENERATED_LINES] + lines[GENERATED_LINES:][-GENERATED_LINES:]]
    return any(hint in line.lower() and GENERATED.search(line) for line in ends for hint in GENERATED_HINTS)
