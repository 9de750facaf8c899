"""Labels `personal_data`: addresses and numbers that belong to a person or open something, each checked, with kinds.

A pattern alone finds order numbers and prices. So whatever has a check digit, a range or an official list is held
against it, and what stands inside a longer number or word is not taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from chatloom.corpus.labellers import finders
from chatloom.corpus.labellers.spans import KIND_OF_SPAN, apart, replaced
from chatloom.corpus.labelling import SPANS, Labeller
from chatloom.corpus.record import Document
from chatloom.settings import Settings

Kind = Literal["email", "ipv4", "ipv6", "card", "iban", "chinese_id", "chinese_mobile", "secret"]
EMAIL, IPV4, IPV6, CHINESE_ID, CARD, IBAN, CHINESE_MOBILE, SECRET = range(1, 9)
KINDS = {
    EMAIL: "email", IPV4: "ipv4", IPV6: "ipv6", CARD: "card", IBAN: "iban", CHINESE_ID: "chinese_id",
    CHINESE_MOBILE: "chinese_mobile", SECRET: "secret",
}  # fmt: skip
PLACEHOLDERS = {
    EMAIL: "<EMAIL>", IPV4: "<IP>", IPV6: "<IP>", CARD: "<CARD>", IBAN: "<IBAN>", CHINESE_ID: "<ID>",
    CHINESE_MOBILE: "<PHONE>", SECRET: "<SECRET>",
}  # fmt: skip
FINDERS = {
    EMAIL: finders.emails, IPV4: finders.ipv4, IPV6: finders.ipv6, CARD: finders.cards, IBAN: finders.ibans,
    CHINESE_ID: finders.chinese_ids, CHINESE_MOBILE: finders.chinese_mobiles, SECRET: finders.secrets,
}  # fmt: skip


class PersonalDataSettings(Settings):
    """What is looked for."""

    kinds: tuple[Kind, ...] = Field(
        default=("email", "ipv4", "ipv6", "card", "iban", "chinese_id", "chinese_mobile", "secret"),
        min_length=1,
        description="kinds to look for",
    )


class PersonalData(Labeller[PersonalDataSettings]):
    """E-mail addresses, public IP addresses, payment cards (Luhn, ISO/IEC 7812), bank accounts (IBAN, ISO 13616),
    Chinese identity numbers (GB 11643-1999), Chinese mobile numbers, and keys and passwords of programs.

    personal_data: spans; personal_data_kinds: what each is, one number a span (KINDS: 1 email, 2 ipv4, 3 ipv6, 4
    chinese_id, 5 card, 6 iban, 7 chinese_mobile, 8 secret); personal_data_count: how many. `redact` puts a
    placeholder in the place of each.
    """

    name = "personal_data"
    columns: Mapping[str, pa.DataType] = {
        "personal_data": SPANS,
        "personal_data_kinds": KIND_OF_SPAN,
        "personal_data_count": pa.int64(),
    }
    kinds: ClassVar[Mapping[str, Mapping[int, str]]] = {"personal_data_kinds": KINDS}
    Settings = PersonalDataSettings

    def __init__(self, settings: PersonalDataSettings) -> None:
        super().__init__(settings)
        self._finders = {kind: FINDERS[kind] for kind, name in KINDS.items() if name in settings.kinds}

    def label(self, documents: Sequence[Document]) -> list[dict[str, Any]]:
        """What was found in each document."""
        return [self._label(document.text) for document in documents]

    def _label(self, text: str) -> dict[str, Any]:
        found = [(start, end, kind) for kind, find in self._finders.items() for start, end in find(text)]
        spans, kinds = apart(found)
        return {"personal_data": spans, "personal_data_kinds": kinds, "personal_data_count": len(kinds)}


def redact(text: str, spans: Sequence[int], kinds: Sequence[int]) -> str:
    """The text with the placeholder of its kind in the place of each span."""
    return replaced(text, spans, [PLACEHOLDERS[kind] for kind in kinds])
