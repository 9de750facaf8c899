"""An n-gram language model: how likely, in nats, a text is for someone who read the reference text and nothing else.

Trained by `training`, read from a folder of .npy files, which are memory-mapped. Scoring works on many texts at
once: a table search for each order finds the longest known n-gram that ends in each unit (see `KeyTable`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatloom.corpus.ngrams.table import KeyTable, load_array
from chatloom.corpus.ngrams.training import FORMAT, START, UNKNOWN, unit_places
from chatloom.corpus.ngrams.units import WORDS, Pieces, Spelling, Stream, UnitCutter, Words
from chatloom.corpus.text.units import I64, batches, join, pieces, sums
from chatloom.errors import ChatloomError
from chatloom.tokens.vocabulary import Vocabulary

F64 = NDArray[np.float64]
LARGEST_NATS = 700.0  # beyond this a perplexity has no floating-point number


@dataclass(frozen=True)
class Scores:
    """What a model makes of each of some texts; arrays of [texts]."""

    nats: F64  # minus log-probability of the whole text
    n_units: I64
    n_unknown: I64  # units that are not in the vocabulary
    n_bytes: I64  # bytes that the units stand for: without white space for words

    @property
    def nats_per_unit(self) -> F64:
        """Cross-entropy; NaN for a text without units."""
        return np.divide(self.nats, self.n_units, out=np.full(len(self.nats), np.nan), where=self.n_units > 0)

    @property
    def perplexity(self) -> F64:
        """exp(nats per unit); NaN for a text without units."""
        return np.exp(np.minimum(self.nats_per_unit, LARGEST_NATS))

    @property
    def bits_per_byte(self) -> F64:
        """Bits for each byte, which compare across languages and kinds of units; NaN for a text without units."""
        bits = self.nats / np.log(2)
        return np.divide(bits, self.n_bytes, out=np.full(len(bits), np.nan), where=self.n_bytes > 0)


class NgramModel:
    """A trained model; the arrays stay on the disk until they are looked at."""

    def __init__(
        self,
        tables: Sequence[KeyTable],
        logprobs: Sequence[NDArray[np.float32]],
        backoffs: Sequence[NDArray[np.float32]],
        cutter: UnitCutter,
        spelling: Spelling | None,
        description: dict[str, Any],
    ) -> None:
        self.order = len(tables)
        self.description = description
        self.cutter = cutter
        self._tables, self._logprobs, self._backoffs = tables, logprobs, backoffs
        self._spelling = spelling
        _, (self._unknown,) = tables[0].find(np.array([UNKNOWN]))

    @classmethod
    def load(cls, folder: Path, vocabulary: Vocabulary | None = None) -> NgramModel:
        """Open a model; `vocabulary` is needed for one that counts pieces.

        Raises ChatloomError for a folder that holds no model, a damaged one, or one of another vocabulary.
        """
        description = read_description(folder, FORMAT)
        words = description["units"] == WORDS
        if not words and vocabulary is None:
            raise ChatloomError(f"{folder}: the model counts the pieces of a vocabulary; give that vocabulary")
        if not words and vocabulary is not None and vocabulary.size != description["types"]:
            raise ChatloomError(
                f"{folder}: the model was trained with a vocabulary of {description['types']} entries, "
                f"found one of {vocabulary.size}"
            )
        tables, logprobs, backoffs = [], [], []
        for order, size in enumerate(description["n_grams"], start=1):
            index = load_array(folder / f"{order}.index.npy", np.uint32 if size < 2**32 else np.uint64)
            tables.append(KeyTable(load_array(folder / f"{order}.keys.npy", np.uint64, size + 1), index))
            logprobs.append(load_array(folder / f"{order}.logprob.npy", np.float32, size))
            if order < description["order"]:
                backoffs.append(load_array(folder / f"{order}.backoff.npy", np.float32, size))
        spelling = Spelling(np.asarray(description["spelling"], np.int64)) if words else None
        cutter = Words() if vocabulary is None or words else Pieces(vocabulary)
        return cls(tables, logprobs, backoffs, cutter, spelling, description)

    @property
    def n_bytes(self) -> int:
        """Size of the tables in bytes."""
        values = sum(array.nbytes for array in [*self._logprobs, *self._backoffs])
        return values + sum(table.keys.nbytes + table.index.nbytes for table in self._tables)

    def score(self, texts: Sequence[str], *, shuffle: int | None = None) -> Scores:
        """Score texts; a text's scores do not depend on the texts beside it.

        A text longer than `units.PIECE_CHARACTERS` is scored in pieces, each from a text's start. `shuffle` is the seed
        of a random order that the units of each text are put into first: what the model should find far less likely.
        """
        whole, owners = pieces(texts)
        result = np.zeros((len(texts), 4))
        for first, last in batches(whole):
            stream = self.cutter(whole[first:last])
            stream = stream if shuffle is None else stream.shuffled(shuffle)
            logprobs, unknown = self._unit_logprobs(stream)
            rows = (
                -sums(logprobs, stream.offsets),
                np.diff(stream.offsets),
                sums(unknown.astype(np.int64), stream.offsets),
                stream.n_bytes,
            )
            for column, values in enumerate(rows):
                np.add.at(result[:, column], owners[first:last], values)
        n_units, n_unknown, n_bytes = (result[:, column].astype(np.int64) for column in (1, 2, 3))
        return Scores(result[:, 0], n_units, n_unknown, n_bytes)

    def logprobs(self, text: str) -> F64:
        """Log-probability (nats) of each unit of one text given those before it: [units]."""
        return self._unit_logprobs(self.cutter([text]))[0]

    def is_known(self, text: str) -> NDArray[np.bool_]:
        """Whether each unit of a text is in the vocabulary: [units]."""
        return ~self._unit_logprobs(self.cutter([text]))[1]

    def _unit_logprobs(self, stream: Stream) -> tuple[F64, NDArray[np.bool_]]:
        """Log-probability of each unit with its spelling where it is unknown, and which are unknown: [units]."""
        pad = self.order - 1
        where = unit_places(stream.offsets, pad)
        hashes = np.full(len(stream.hashes) + pad * (len(stream.offsets) - 1), START, np.uint64)
        hashes[where] = stream.hashes
        known, place = self._tables[0].find(hashes)
        unknown = np.flatnonzero(~known)
        hashes[unknown], place[unknown] = UNKNOWN, self._unknown
        logprobs = self._logprobs[0][place].astype(np.float64)
        found, keys = np.ones(len(hashes), bool), hashes.copy()
        for order in range(2, self.order + 1):
            # An n-gram is known only if both n-grams inside it, one unit shorter, are.
            has_context = np.empty_like(found)
            has_context[:1], has_context[1:] = False, found[:-1]
            candidates = np.flatnonzero(has_context & found)
            candidate_keys = join(keys[candidates - 1], hashes[candidates])
            hit, at = self._tables[order - 1].find(candidate_keys)
            hits = candidates[hit]
            longer = np.zeros(len(found), bool)
            longer[hits] = True
            missed = np.flatnonzero(has_context & ~longer)
            logprobs[missed] += self._backoffs[order - 2][place[missed - 1]]
            logprobs[hits] = self._logprobs[order - 1][at[hit]]
            place[hits] = at[hit]
            keys[hits] = candidate_keys[hit]
            found = longer
        result = logprobs[where]
        is_unknown = ~known[where]
        if self._spelling is not None and stream.units is not None:
            which = np.flatnonzero(is_unknown)
            result[which] += self._spelling.logprobs(stream.units, which)
        return result, is_unknown


def read_description(folder: Path, expected_format: int) -> dict[str, Any]:
    """The model.json of a model's folder; raises ChatloomError where there is none, or one of another format."""
    path = folder / "model.json"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ChatloomError(f"{path}: no such file; give the folder of a trained model") from None
    except (OSError, ValueError) as error:
        raise ChatloomError(f"{path}: not a readable description of a model: {error}") from None
    found = description.get("format") if isinstance(description, dict) else None
    if found != expected_format:
        raise ChatloomError(f"{path}: format {found!r}, expected {expected_format}; train the model with this version")
    return dict(description)
