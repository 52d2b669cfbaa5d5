"""A look-up that a commit has overtaken, against the look-up that comes behind it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from effectonce.model import Keys, Known, Markers
from effectonce.stores.commits import behind
from tests.unit.builders import keys_of

IDS = st.text("abcdefgh", max_size=12)


def known_in(marked: dict[bytes, int], keys: Keys) -> Known:
    found = [marked.get(key.tobytes()) for key in keys]
    return Known(
        np.array([each is not None for each in found], np.bool_),
        np.array([each or 0 for each in found], np.uint32),
        as_of=7,
    )


@given(IDS, IDS.map(lambda text: "".join(dict.fromkeys(text))), IDS)
def test_it_finds_what_comes_to_be_marked_and_nothing_else(
    before: str, marks: str, asked: str
) -> None:
    there = {keys_of(each).tobytes(): ord(each) for each in before}
    new = "".join(each for each in marks if each not in before)
    fingerprints = np.array([1_000 + ord(each) for each in new], np.uint32)
    markers = Markers(keys_of(new), fingerprints, np.arange(len(new)))
    keys = keys_of(asked)
    early = known_in(there, keys)
    seen = early.seen.tolist()
    found = behind(early, keys, markers if new else None)
    there |= {keys_of(each).tobytes(): 1_000 + ord(each) for each in new}
    late = known_in(there, keys)
    assert found.seen.tolist() == late.seen.tolist()
    assert found.fingerprints.tolist() == late.fingerprints.tolist()
    assert found.as_of == 7
    assert early.seen.tolist() == seen, "what was told before stays as it is"
