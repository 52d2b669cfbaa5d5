"""The command line turns an ID into the key that the consumer had for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import effectonce as eo
from effectonce.cli.stored import Wanted, key_from_hex, key_of
from effectonce.identity import Identify, Identity, only_header
from effectonce.identity.record import Headers
from effectonce.model import Offsets
from effectonce.testing.owner import AT, OTHER

UUID = "7d444840-9dc0-41d1-b245-5ffdce74fad2"
SECRET = b"0123456789abcdef"


@dataclass(frozen=True)
class OneRecord:
    """A record as identity reads it."""

    header: dict[str, str]
    topic: str = "orders"
    partition: int = 0

    def __len__(self) -> int:
        return 1

    def offsets(self) -> Offsets:
        return np.zeros(1, np.int64)

    def values(self) -> list[bytes | None]:
        return [b"{}"]

    def keys(self) -> list[bytes | None]:
        return [None]

    def headers(self) -> list[Headers]:
        return [[(name, value.encode()) for name, value in self.header.items()]]

    def only_header(self, name: str) -> list[bytes | None] | None:
        return only_header(self.headers(), name, len(self))


@pytest.mark.parametrize("secret", [None, SECRET])
@pytest.mark.parametrize(
    ("identify", "header"),
    [
        (eo.header("event-id"), {"event-id": UUID}),
        (eo.header("event-id"), {"event-id": UUID.upper()}),
        (eo.header("event-id"), {"event-id": "invoice-4711"}),
        (eo.cloudevent(), {"ce_source": "/shop", "ce_id": "17"}),
        (eo.joined(eo.header("a"), eo.header("b")), {"a": "1", "b": UUID}),
    ],
)
def test_the_key_is_the_consumers(
    identify: Identify, header: dict[str, str], secret: bytes | None, tmp_path: Path
) -> None:
    file = None
    if secret is not None:
        file = tmp_path / "secret"
        file.write_bytes(secret)
    identified = Identity(identify, secret).identify(OneRecord(header))
    assert not identified.problems
    assert key_of([*header.values()], file) == identified.keys.tobytes()
    if len(header) > 1:
        assert key_from_hex(identified.text(0)) == identified.keys.tobytes()


def test_what_is_not_given_is_any() -> None:
    assert AT in Wanted()
    assert AT in Wanted("payments", "billing", "orders", 0)
    assert OTHER not in Wanted(number=0)
    assert AT not in Wanted(scope="billing")
