"""The tool that keeps a run for the pages makes pictures small, and keeps no crash."""

import numpy as np
import pytest
from PIL import Image

from gyri.reproduce import Claim, Data
from gyri.reproduce.record import FigureFile, Record, load_records
from gyri.reproduce.registry import find_experiments
from tools.keep_report import KEPT, WIDTH, keep


def make_record(**changes):
    fields = {"paper": "tv", "name": "figure_3", "figure": "Figure 3", "title": "Error", "description": ""}
    fields |= {"status": "finished", "scale": "quick", "seed": 0, "backend": "loky", "jobs": 1}
    fields |= {"started": "2026-01-01T00:00:00+00:00", "seconds": 1.5, "data": Data.simulated("noise"), "code": "x = 1"}
    return Record(**(fields | changes))


def test_figures_get_small_and_old_ones_go(tmp_path):
    run, kept = tmp_path / "run", tmp_path / "kept"
    folder = "figures/tv/figure_3"
    (run / folder).mkdir(parents=True)
    (kept / folder).mkdir(parents=True)
    (kept / folder / "old.png").touch()
    pixels = np.random.default_rng(0).integers(0, 255, (600, 2000, 4), np.uint8)
    Image.fromarray(pixels).save(run / folder / "1-a.png")
    figure = FigureFile(name="a", caption="A.", png=f"{folder}/1-a.png", svg=f"{folder}/1-a.svg")
    claims = (Claim.at_most("error", 0.1, 0.05),)
    make_record(figures=(figure,), claims=claims).save(run)
    assert keep(run, kept) == ["tv/figure_3"]
    (record,) = load_records(kept)
    assert record.claims == claims and record.code == "" and record.figures[0].svg == ""
    assert not (kept / folder / "old.png").exists()
    with Image.open(kept / record.figures[0].png) as image:
        assert image.width == WIDTH and image.height == WIDTH * 600 // 2000
    assert (kept / figure.png).stat().st_size < (run / figure.png).stat().st_size / 4


def test_a_crash_is_not_kept(tmp_path):
    make_record(status="crashed", error="no").save(tmp_path)
    with pytest.raises(ValueError, match="tv/figure_3 crashed"):
        keep(tmp_path, tmp_path / "kept")


def test_what_is_kept_is_still_an_experiment():
    known = {experiment.id for experiment in find_experiments()}
    assert {record.id for record in load_records(KEPT)} <= known
