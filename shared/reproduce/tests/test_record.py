import json
import math
import os

import pytest

from gyri.reproduce import Claim, Data
from gyri.reproduce.record import FigureFile, Record, load_record, load_records, record_path


def make_record(**changes):
    fields = {
        "paper": "dripp",
        "name": "figure_3",
        "figure": "Figure 3",
        "title": "Error",
        "description": "",
        "status": "finished",
        "scale": "quick",
        "seed": 0,
        "backend": "loky",
        "jobs": 1,
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": 1.5,
        "data": Data.stand_in(for_="MNE sample", used="noise"),
        "claims": (
            Claim.at_most("error", 0.1, [0.1, math.nan]),
            Claim.info("side", "left", "left"),
            Claim.info("bound", None, math.inf),
            Claim.close("latency", 7.0, [6.9, 7.0, 7.1], atol=0.2, unit="ms", note="n"),
            Claim.not_run("atom", 86),
        ),
        "figures": (FigureFile(name="a", caption="A.", png="a.png", svg="a.svg"),),
    }
    return Record(**(fields | changes))


def test_round_trip_keeps_everything(tmp_path):
    record = make_record()
    record.save(tmp_path)
    loaded = load_record(record_path(tmp_path, "dripp", "figure_3"))
    assert repr(loaded) == repr(record)  # repr: NaN is not equal to itself
    assert [c.verdict for c in loaded.claims] == [c.verdict for c in record.claims]


def test_json_is_strict_and_complete(tmp_path):
    make_record().save(tmp_path)

    def refuse(constant):
        raise AssertionError(constant)

    text = record_path(tmp_path, "dripp", "figure_3").read_text()
    content = json.loads(text, parse_constant=refuse)
    assert content["schema"] == 1
    assert set(content) == {
        *("schema", "paper", "name", "figure", "title", "description", "status", "scale", "seed", "backend", "jobs"),
        *("started", "seconds", "machine", "versions", "jax", "data", "claims", "figures", "error", "code"),
    }
    assert set(content["machine"]) == {"cpu", "cores", "memory_gib", "os"}
    assert {"python", "numpy", "gyri-reproduce"} <= set(content["versions"])
    assert content["data"] == {"kind": "stand-in", "name": "noise", "stands_for": "MNE sample"}
    assert content["claims"][0]["measured"] == "nan"
    assert [c["verdict"] for c in content["claims"]] == ["missed", "reported", "reported", "met", "not run"]
    assert content["claims"][3]["criterion"] == "6.8 to 7.2"


def test_records_of_the_first_release_have_no_code(tmp_path):
    make_record(code="x = 1").save(tmp_path)
    path = record_path(tmp_path, "dripp", "figure_3")
    assert load_record(path).code == "x = 1"
    content = json.loads(path.read_text())
    del content["code"]
    path.write_text(json.dumps(content))
    assert load_record(path).code == ""


def test_verdict_is_computed_again_on_load(tmp_path):
    make_record().save(tmp_path)
    path = record_path(tmp_path, "dripp", "figure_3")
    path.write_text(path.read_text().replace('"missed"', '"met"'))
    assert load_record(path).claims[0].verdict.value == "missed"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "figure_3.json"),
        ("[]", "not a record|schema"),
        ('{"schema": 2}', "schema: expected 1, got 2"),
        ('{"schema": 1}', "not a record"),
    ],
)
def test_damaged_or_newer_file_is_a_clear_error(tmp_path, text, message):
    path = record_path(tmp_path, "dripp", "figure_3")
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_record(path)


def test_figures_sort_by_number(tmp_path):
    for name, figure in (("a", "Figure 10"), ("b", "Figure 2"), ("c", "Table 1")):
        make_record(name=name, figure=figure).save(tmp_path)
    assert [record.figure for record in load_records(tmp_path)] == ["Figure 2", "Figure 10", "Table 1"]


def test_no_results_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="out: no results"):
        load_records(tmp_path)


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    make_record().save(tmp_path)

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        make_record(seed=7).save(tmp_path)
    assert load_record(record_path(tmp_path, "dripp", "figure_3")).seed == 0
