"""Record to event ID and fingerprint: pure, a batch at a time.

`sources` says where an ID stands, `source` how they are chained, `keys` how an ID becomes 16
bytes; `identify` does all of it for the columns of a batch. `decode` reads documents of strangers,
and `record` is what all of them read.
"""

from effectonce.identity.identify import NULL_FINGERPRINT, Identified, Identity
from effectonce.identity.record import (
    UNREADABLE_HEADERS,
    Columns,
    Headers,
    IdProblem,
    ProblemKind,
    Record,
    only_header,
)
from effectonce.identity.source import Identify, Replacing, Source
from effectonce.identity.sources import (
    cloudevent,
    custom,
    delivery,
    field,
    header,
    joined,
    payload_hash,
    record_key,
)

__all__ = [
    "NULL_FINGERPRINT",
    "UNREADABLE_HEADERS",
    "Columns",
    "Headers",
    "IdProblem",
    "Identified",
    "Identify",
    "Identity",
    "ProblemKind",
    "Record",
    "Replacing",
    "Source",
    "cloudevent",
    "custom",
    "delivery",
    "field",
    "header",
    "joined",
    "only_header",
    "payload_hash",
    "record_key",
]
