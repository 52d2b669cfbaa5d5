"""The page stands alone, and shows what the JSON says and nothing else."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import benchmarks.bench as bench
from benchmarks import lanes, latency, memory, parts, report
from benchmarks.figures import spread

FLAT: dict[str, Any] = {
    "seed": 7,
    "date": "2026-01-02 03:04 UTC",
    "cpus": 2,
    "rocksdict_version": "0.3.29",
    "bare_per_second": 1_400_000,
    **spread("share_rocksdb_1e6_batch1000_repeats_10", [0.4, 0.5, 0.6]),
    **spread("share_rocksdb_1e7_cold", [0.41]),
    **spread("share_dbos", [0.0007]),
    "ratio_dbos": 700.0,
    "peers_lack": {"dbos": "knows <no> event", "idemkit": "two writes"},
    "peers_missing": {"idemkit": "no network"},
    **spread("latency_p99_added_ms_low_rate", [-0.1, 0.3, 0.4]),
    **spread("latency_p99_ms_low_rate_bare", [1.0]),
    "memory_keys": 10_000_000,
    "bytes_per_key_disk": 24.5,
    **spread("restart_seconds_1e7", [1.0]),
}


class Page(HTMLParser):
    """Checks that what opens is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(flat: dict[str, Any]) -> Page:
    parsed = Page()
    parsed.feed(report.page(flat))
    parsed.close()
    assert parsed.open == []
    return parsed


def test_the_page_is_whole_and_fetches_nothing() -> None:
    seen = read(FLAT).seen
    assert not [tag for tag, _ in seen if tag in ("script", "link", "img", "iframe")]
    assert not re.search(r"https?:|url\(|@import", report.page(FLAT))
    assert sum(tag == "svg" for tag, _ in seen) == 5


def test_every_figure_is_on_the_page_with_its_spread() -> None:
    text = read(FLAT).text
    assert "rocksdb 1e6 batch1000 repeats 10" in text
    assert "0.5 (0.4 to 0.6)" in text
    for said in ("24.5", "2026-01-02 03:04 UTC", "0.3.29", "not measured: no network", "700"):
        assert said in text
    assert "knows <no> event" in text, "escaped, and so read as it was written"


def test_a_bar_is_as_long_as_its_figure() -> None:
    drawn = report.bars([("half", 0.4, 0.5, 0.5), ("whole", 1.0, 1.0, 1.0)])
    half, whole = (float(each) for each in re.findall(r'class="bar".*?width="([\d.]+)"', drawn))
    assert half / whole == pytest.approx(0.5)


def test_what_was_added_may_be_less_than_nothing() -> None:
    drawn = report.bars([("faster than bare", -1.0, -0.5, 1.0)])
    ((start, width),) = re.findall(r'class="bar" x="([\d.]+)" y="\d+" width="([\d.]+)"', drawn)
    middle = report.LEFT + report.WIDTH / 2
    assert float(start) + float(width) == pytest.approx(middle)


def test_a_part_alone_makes_a_page_without_the_other_sections() -> None:
    text = read({"seed": 1, **spread("share_rocksdb_sync_1000", [0.5])}).text
    assert "An fsync a batch" in text
    assert "Peers" not in text
    assert "Latency" not in text


def test_quick_has_the_headline_figures_and_leaves_out_what_takes_hours() -> None:
    quick = bench.planned(None, quick=True, warm_up=0)
    assert [part.name for part in quick.parts] == ["10", "redis", "keys_1e7"]
    assert quick.latency
    assert not quick.memory
    full = bench.planned(None, quick=False, warm_up=0)
    assert {part.only for part in full.parts} == set(parts.NAMES)
    assert full.latency
    assert full.memory
    keys = [part.name for part in bench.planned("keys", quick=True, warm_up=0).parts]
    assert keys == ["keys_1e5", "keys_1e6", "keys_1e7"], "5e7 only in a full run"


def test_each_key_names_one_figure_or_a_part_would_overwrite_anothers() -> None:
    names = [part.key(each.name) for part in parts.parts(0) for each in part.field[1:]]
    assert len(names) == len(set(names))
    assert {"share_rocksdb_1e7_cold", "share_rocksdb_5e7_cold_event"} <= set(names)
    assert {"share_rocksdb_sync_1000", "share_rocksdb_1e6_batch1000_repeats_10"} <= set(names)
    assert {"share_setnx_loop", "share_setnx_loop_beside_redis", "share_dbos"} <= set(names)


def test_from_the_command_line_a_part_ends_in_json_and_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "OUT", tmp_path / "out" / "bench.json")
    monkeypatch.setattr(
        bench, "FULL", bench.Scale(3_000, 1, latency.QUICK, memory.QUICK, lanes.QUICK)
    )
    monkeypatch.setattr(parts, "STORED", 2_000)
    monkeypatch.setattr(parts, "KEYS", (2_000, 3_000))
    assert bench.main(["--only", "keys", "--seed", "3"]) == 0
    flat = json.loads((tmp_path / "out" / "bench.json").read_text())
    for key in ("share_rocksdb_2e3_cold", "share_rocksdb_3e3_cold_event"):
        assert 0 < flat[f"{key}_least"] <= flat[key] <= flat[f"{key}_greatest"]
    assert flat["seed"] == 3
    assert flat["bare_per_second"] > 0
    assert {"date", "cpu", "kafka", "rocksdict_version"} <= flat.keys()
    assert "rocksdb 3e3 cold event" in (tmp_path / "out" / "bench.html").read_text()
