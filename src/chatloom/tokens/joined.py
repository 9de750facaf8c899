"""Several token stores read as one: their documents numbered through, each still traceable to its own store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from chatloom.tokens.store import TokenStore, TokenStoreError
from chatloom.tokens.store_writer import RESERVED


class JoinedStores:
    """Stores of one vocabulary one after another; document numbers run through all of them."""

    def __init__(self, stores: Sequence[TokenStore]) -> None:
        """Raises TokenStoreError for no store, or stores of different vocabularies."""
        if not stores:
            raise TokenStoreError("no token store was given; expected at least one")
        for store in stores[1:]:
            ours, theirs = stores[0].header["vocabulary_sha256"], store.header["vocabulary_sha256"]
            if ours != theirs:
                raise TokenStoreError(
                    f"{stores[0].folder} was written with vocabulary {ours[:12]}, {store.folder} with {theirs[:12]}; "
                    "make the tokens of both with one vocabulary"
                )
        self.stores = tuple(stores)
        self._first = np.concatenate([[0], np.cumsum([len(store) for store in stores])])
        self.lengths = np.concatenate([store.lengths for store in stores])

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def bytes_a_token(self) -> int:
        """Bytes of a token on disk."""
        return self.stores[0].dtype.itemsize

    @property
    def names(self) -> list[str]:
        """What expressions over documents may name: their own columns, `store` (from 0), and every store's labels."""
        labels = {label for store in self.stores for label in store.labels}
        return sorted({*labels, *RESERVED} - {"start"})

    def _find(self, document: int) -> tuple[TokenStore, int]:
        if not 0 <= document < len(self.lengths):
            raise IndexError(f"document {document} of {len(self.lengths)}")
        place = int(np.searchsorted(self._first, document, side="right")) - 1
        return self.stores[place], document - int(self._first[place])

    def read(self, document: int, start: int = 0, end: int | None = None) -> np.ndarray:
        """Ids start..end of one document: int64 [end - start]. Raises IndexError outside it."""
        store, number = self._find(document)
        return store.read(number, start, end)

    def weights(self, document: int, start: int = 0, end: int | None = None) -> np.ndarray:
        """Weight of each of these tokens as a target: float32 [end - start]. Raises IndexError outside it."""
        store, number = self._find(document)
        return store.weights(number, start, end)

    def describe(self, documents: Sequence[int]) -> list[dict[str, Any]]:
        """Rows of the document tables in the order asked for, with the number of their `store`."""
        wanted = np.asarray(documents, dtype=np.int64)
        places = np.searchsorted(self._first, wanted, side="right") - 1
        found: dict[int, dict[str, Any]] = {}
        for place in np.unique(places).tolist():
            mine = wanted[places == place]
            rows = self.stores[place].describe((mine - self._first[place]).tolist())
            found.update({n: {**row, "store": place} for n, row in zip(mine.tolist(), rows, strict=True)})
        return [found[n] for n in wanted.tolist()]

    def tables(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """Columns of all documents in order, some thousands at a time."""
        own = [name for name in names if name != "store"]
        for number, store in enumerate(self.stores):
            for part in store.tables(own):
                if "store" in names:
                    part = part.append_column("store", pa.array(np.full(part.num_rows, number, dtype=np.int64)))
                yield part
