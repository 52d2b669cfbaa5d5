"""What is on its way to the server: commits, and look-ups that left in front of some of them.

A look-up asked early overtakes the commits that are sent before its answer is taken. Its answer is
true of an earlier moment, and these are what we ourselves have done since:

| a commit behind it                         | then                                              |
| ------------------------------------------ | ------------------------------------------------- |
| was applied, and none of its keys marked   | they are marked now; as of its mark, if nobody    |
|                                            | else has marked in between                        |
| of another TAG, or another run             | it says nothing                                   |
| anything else, or it came again, alone     | the look-up is asked again                        |

What others have done since is not in it, as in any look-up: their mark is another one, so the
commit looks for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from effectonce.model import Commit, CommitResult, Known, Query
from effectonce.stores.commits import behind
from effectonce.stores.redis_ahead import Answer
from effectonce.stores.redis_index import Image
from effectonce.stores.redis_rows import Space

MOST_QUESTIONS: Final = 16
"""Of eight consumers that share a store: of the batch that is decided next, and the one behind it.
Of more, those that were asked first are asked again."""


@dataclass(slots=True, eq=False)
class Sent:
    """A commit that was sent ahead."""

    commit: Commit
    space: Space
    answer: Answer
    mark: bytes
    image: Image | None = None
    """Taken for it, where there is a local index."""
    result: CommitResult | None = None
    found: Sequence[Any] | None = None
    """What the script answered, unless it came again, alone."""


@dataclass(slots=True, eq=False)
class Question:
    """A look-up that was sent ahead."""

    query: Query
    space: Space
    answer: Answer
    in_front: list[Sent]
    behind: list[Sent] = field(default_factory=list)
    void: bool = False
    """A commit has overtaken it that it does not know of."""

    def after(self, known: Known | None, sent: Sent) -> Known | None:
        """The answer once that commit behind it is answered; None: it is to be asked again."""
        if known is None or sent.space.tag != self.space.tag:
            return known
        if sent.commit.position.run != self.query.run:
            return known  # its mark is another one, so the commit looks for itself
        match sent.found:
            case [b"applied", 0, _, bytes(was)]:
                later = behind(known, self.query.keys, markers := sent.commit.markers)
                is_next = markers is not None and int.from_bytes(was, "big") == known.as_of
                return replace(later, as_of=int.from_bytes(sent.mark, "big")) if is_next else later
            case _:
                return None
