"""out/bench.json as a page: one file, its plots drawn here as SVG, nothing fetched from anywhere.

    python -m benchmarks.report [out/bench.json]       writes out/bench.html beside it

| section     | from which keys                                                     |
| ----------- | ------------------------------------------------------------------- |
| shares      | share_*: a bar a contender, its least and greatest as a whisker     |
| peers       | ratio_*, share_* and peers_lack, peers_missing                      |
| latency     | latency_*: bare, ours, and what is added                            |
| memory      | bytes_per_key_*, restart_*, recovery_*, longest_batch_*             |
| all figures | every key, so that nothing can be seen only by reading the JSON     |

A section whose keys are not there is left out: `ONLY=` measures one part.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final, TypeAlias

from benchmarks.figures import GREATEST, LEAST

Flat: TypeAlias = Mapping[str, Any]

SECTIONS: Final = {
    "Repeats": ("_repeats_", "setnx"),
    "Near and far repeats": ("_near", "_far"),
    "Stored keys": ("_cold",),
    "Fetched while consumed": ("_live",),
    "Value size": ("_value_",),
    "An fsync a batch": ("_sync_",),
}
"""Title -> what a share's key holds one of; the first that fits takes it, peers have a section."""

MACHINE: Final = (
    *("date", "seed", "cpu", "cpus", "memory_gb", "system", "load_average", "messages", "rounds"),
    *("stored_keys", "bare_per_second", "python", "kafka", "librdkafka"),
)
BAR, GAP, LEFT, WIDTH, RIGHT = 18, 8, 300, 420, 150

STYLE: Final = """
:root { color-scheme: light dark; --ink: #1c2733; --soft: #5b6b7b; --bar: #3477b5; --bare: #9fb2c4;
  --line: #d9e0e7; --page: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4eaf0; --soft: #9aa9b8; --bar: #5b9bd8;
  --bare: #54677a; --line: #34414e; --page: #151b21; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; } p, small { color: var(--soft); }
svg { max-width: 100%; height: auto; } svg text { font-size: 13px; fill: var(--ink); }
svg .bar { fill: var(--bar); } svg .whisker { stroke: var(--ink); stroke-width: 1.5; }
svg .axis { stroke: var(--line); } svg .tick { fill: var(--soft); font-size: 11px; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: .3rem .6rem;
  border-bottom: 1px solid var(--line); vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.wide { overflow-x: auto; }
"""


def write(figures: Path) -> Path:
    """The page of these figures, beside them; returns where it is."""
    flat = json.loads(figures.read_text(encoding="utf-8"))
    target = figures.with_suffix(".html")
    target.write_text(page(flat), encoding="utf-8")
    return target


def page(flat: Flat) -> str:
    sections = [
        *_machine(flat),
        *_shares(flat),
        *_peers(flat),
        *_latency(flat),
        *_memory(flat),
        *_everything(flat),
    ]
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>effectonce: benchmark</title><style>{STYLE}</style></head>\n"
        f"<body><h1>effectonce: benchmark</h1>\n{body}\n</body></html>\n"
    )


# -- sections --------------------------------------------------------------------------------------


def _machine(flat: Flat) -> Iterator[str]:
    yield (
        "<p>Shares are of a bare consumer (consume, headers, value, an empty handler) in the same "
        "round: 1 is as fast as bare. Median, least and greatest of the rounds. Only ratios travel "
        "between machines.</p>"
    )
    names = [*MACHINE, *(key for key in flat if key.endswith("_version"))]
    rows = [(_words(key), escape(str(flat[key]))) for key in names if key in flat]
    yield _table(("measured", ""), rows)


def _shares(flat: Flat) -> Iterator[str]:
    peers = set(_peer_names(flat))
    left = [key for key in _measured(flat, "share_") if key.removeprefix("share_") not in peers]
    for title, signs in (*SECTIONS.items(), ("Others", ("",))):
        here = [key for key in left if any(sign in key for sign in signs)]
        left = [key for key in left if key not in here]
        if here:
            yield f"<h2>{title}: share of bare</h2>"
            yield bars([(_words(key.removeprefix("share_")), *_spread(flat, key)) for key in here])


def _peers(flat: Flat) -> Iterator[str]:
    names = _peer_names(flat)
    if not names:
        return
    yield "<h2>Peers</h2><p>Times as long as ours (RocksDB, 1e6 keys, batches of 1000).</p>"
    measured = [name for name in names if f"share_{name}" in flat]
    if measured:
        yield bars([(_words(name), *_spread(flat, f"share_{name}")) for name in measured])
    lack, missing = flat.get("peers_lack", {}), flat.get("peers_missing", {})
    yield _table(
        ("peer", "share of bare", "times as long", "does not promise"),
        [
            (
                _words(name),
                _number(flat.get(f"share_{name}")),
                _number(flat.get(f"ratio_{name}")),
                escape(str(lack.get(name, "")))
                + (
                    f" <small>not measured: {escape(missing[name])}</small>"
                    if name in missing
                    else ""
                ),
            )
            for name in names
        ],
    )


def _latency(flat: Flat) -> Iterator[str]:
    keys = _measured(flat, "latency_")
    if not keys:
        return
    yield (
        "<h2>Latency, ms</h2><p>From the call of produce to the handler (bare: to the value). "
        "Added: ours less bare's in the same round.</p>"
    )
    added = [key for key in keys if "_added_" in key]
    yield bars([(_words(key.removeprefix("latency_")), *_spread(flat, key)) for key in added])
    yield _rows(flat, [key for key in keys if key not in added])


def _memory(flat: Flat) -> Iterator[str]:
    starts = ("bytes_per_key_", "restart_", "recovery_", "longest_batch_")
    keys = [key for start in starts for key in _keys(flat, start)]
    if not keys:
        return
    yield (
        "<h2>Memory, start and the longest batch</h2>"
        f"<p>{flat['memory_keys']:,} keys. Of the index's bytes 20 a key "
        "are the log of keys and fingerprints, the rest are buckets.</p>"
    )
    yield bars(
        [(_words(key), *_spread(flat, key)) for key in keys if key.startswith("bytes_per_key_")]
    )
    yield _rows(flat, keys)


def _everything(flat: Flat) -> Iterator[str]:
    plain = [key for key, value in flat.items() if not isinstance(value, dict) and _is_one(key)]
    yield f"<details><summary>All figures</summary>{_rows(flat, plain)}</details>"


# -- the flat keys ---------------------------------------------------------------------------------


def _is_one(key: str) -> bool:
    return not key.endswith((LEAST, GREATEST))


def _keys(flat: Flat, start: str) -> list[str]:
    return [key for key in flat if key.startswith(start) and _is_one(key)]


def _measured(flat: Flat, start: str) -> list[str]:
    """Those that have a spread: what is copied from another key has none."""
    return [key for key in _keys(flat, start) if key + LEAST in flat]


def _peer_names(flat: Flat) -> list[str]:
    return list(flat.get("peers_lack", {}))


def _spread(flat: Flat, key: str) -> tuple[float, float, float]:
    value = float(flat[key])
    return float(flat.get(key + LEAST, value)), value, float(flat.get(key + GREATEST, value))


def _words(key: str) -> str:
    return escape(key.replace("_", " "))


def _number(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"
    return "" if value is None else escape(str(value))


# -- what is drawn ---------------------------------------------------------------------------------


def bars(rows: Sequence[tuple[str, float, float, float]]) -> str:
    """A bar a row (label, least, median, greatest), from zero; the spread as a whisker."""
    low = min(0.0, *(least for _, least, _, _ in rows))
    high = max(0.0, *(greatest for _, _, _, greatest in rows)) or 1.0
    height = len(rows) * (BAR + GAP) + 24

    def x(value: float) -> float:
        return round(LEFT + (value - low) / (high - low) * WIDTH, 1)

    drawn = list(_axis(low, high, x(low), x(high), x(0.0), height - 20))
    for number, (label, least, value, greatest) in enumerate(rows):
        top = number * (BAR + GAP) + 4
        middle = top + BAR / 2
        start, stop = sorted((x(0.0), x(value)))
        spread = f"{_number(least)} to {_number(greatest)}"
        drawn += (
            f'<text x="{LEFT - 8}" y="{middle + 4}" text-anchor="end">{label}</text>',
            f'<rect class="bar" x="{start}" y="{top}" width="{round(stop - start, 1)}" '
            f'height="{BAR}"><title>{label}: {_number(value)} ({spread})</title></rect>',
            f'<line class="whisker" x1="{x(least)}" y1="{middle}" x2="{x(greatest)}" '
            f'y2="{middle}"/>',
            f'<text x="{LEFT + WIDTH + 8}" y="{middle + 4}">{_number(value)} '
            f'<tspan class="tick">({spread})</tspan></text>',
        )
    size = f"{LEFT + WIDTH + RIGHT} {height}"
    return f'<svg viewBox="0 0 {size}" role="img">{"".join(drawn)}</svg>'


def _axis(
    low: float, high: float, left: float, right: float, zero: float, bottom: float
) -> Iterator[str]:
    for at, value in ((left, low), (zero, 0.0), (right, high)):
        if value != 0.0 or at == zero:
            yield f'<line class="axis" x1="{at}" y1="0" x2="{at}" y2="{bottom}"/>'
            yield (
                f'<text class="tick" x="{at}" y="{bottom + 14}" text-anchor="middle">'
                f"{_number(value)}</text>"
            )


def _rows(flat: Flat, keys: Iterable[str]) -> str:
    return _table(
        ("figure", "median", "least", "greatest"),
        [
            (_words(key), *(_number(flat.get(key + end)) for end in ("", LEAST, GREATEST)))
            for key in keys
        ],
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already; those that are numbers stand to the right."""
    heads = "".join(f"<th>{each}</th>" for each in head)
    lines = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{heads}</tr>{lines}</table></div>'


def _cell(text: str) -> str:
    is_number = text.replace(",", "").replace(".", "").replace("-", "").replace("e+", "").isdigit()
    return f'<td class="n">{text}</td>' if is_number else f"<td>{text}</td>"


def main(arguments: Sequence[str]) -> int:
    print(f"written to {write(Path(arguments[0] if arguments else 'out/bench.json'))}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
