import re
from html.parser import HTMLParser

import pytest

from gyri.reproduce import Claim, Data
from gyri.reproduce.record import FigureFile, Record
from gyri.reproduce.report import write_report

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)
HOSTILE = "<script src='https://evil.example/x.js'></script> & \"quotes\""


class Page(HTMLParser):
    """What a test asks of a page: tags, attributes and visible text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag  # every element is closed, in order

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["title"]):
            self.text += " " + data

    def values(self, name):
        return [value for _, attribute, value in self.attributes if attribute == name]


def save(out, **fields):
    common = {"figure": "Figure 1", "title": "t", "description": "", "status": "finished", "scale": "quick", "seed": 0}
    common |= {"backend": "loky", "jobs": 1, "started": "2026-01-02T00:00:00+00:00", "seconds": 65.0}
    common |= {"machine": {"cpu": "Fast CPU", "cores": 8, "memory_gib": 31.9, "os": "Linux"}}
    common |= {"versions": {"python": "3.12.1", "gyri-dripp": "0.1.0"}}
    Record(**(common | fields)).save(out)


@pytest.fixture
def page(tmp_path):
    (tmp_path / "a.png").write_bytes(PIXEL)
    figures = (FigureFile(name="a", caption=HOSTILE, png="a.png", svg="a.svg"),)
    claims = (
        Claim.at_most(HOSTILE, HOSTILE, [0.1, 0.2, 0.4], 0.3, note=HOSTILE, unit="ms"),
        Claim.at_most("missed quantity", 0.1, -0.0, 0.1),
        Claim.between("slope", "-1/2", -0.7, -0.6, -0.4),
        Claim.info("plain", None, 3.0),
    )
    save(
        tmp_path,
        paper="dripp",
        name="a",
        title=HOSTILE,
        description="First.\n\nSecond.",
        data=Data.real(HOSTILE),
        claims=claims,
        figures=figures,
        jax={"backend": "gpu", "devices": ["H100", "H100"]},
    )
    save(tmp_path, paper="dripp", name="b", status="crashed", error=f"Traceback\nRuntimeError: {HOSTILE}")
    save(
        tmp_path,
        paper="saba",
        name="c",
        status="not run",
        data=Data.missing(needs="Cam-CAN"),
        claims=(Claim.not_run("x", 1.0),),
    )
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    return text


def test_page_needs_no_other_file_and_no_network(page):
    parsed = Page(page)
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(parsed.tags)
    assert parsed.values("src")
    assert all(value.startswith("data:image/png;base64,") for value in parsed.values("src"))
    assert all(value.startswith("#") for value in parsed.values("href"))
    assert not parsed.values("srcset")
    style = re.search("<style>(.*)</style>", page, re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in next(value for value in parsed.values("content") if "default-src" in value)


def test_page_is_well_formed_and_its_links_have_targets(page):
    parsed = Page(page)
    assert parsed.open == []
    ids = parsed.values("id")
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in parsed.values("href")} <= set(ids)
    assert "width=device-width, initial-scale=1" in parsed.values("content")
    assert "prefers-color-scheme: dark" in page


def test_text_is_escaped_everywhere(page):
    parsed = Page(page)
    assert "https://evil.example" in parsed.text  # as text
    assert f"Figure 1: {HOSTILE}" in parsed.values("alt")


def test_summary_counts_every_outcome(page):
    text = " ".join(Page(page).text.split())
    assert "2 of 3 claims met" in text
    for count in ("met 2", "missed 1", "reported 1", "experiments crashed 1", "experiments not run 1"):
        assert count in text


def test_misses_crashes_and_missing_data_stand_first(page):
    summary = page[: page.index("<main>")]
    text = " ".join(Page(summary.split("<section")[1].split("</section>")[0].split(">", 1)[1]).text.split())
    assert "missed dripp, Figure 1 : slope" in text
    assert "crashed dripp, Figure 1" in text
    assert "not run saba, Figure 1 : t \N{EN DASH} needs Cam-CAN" in text


def test_claims_show_range_interval_and_unit(page):
    text = " ".join(Page(page).text.split())
    assert "0.2 ms 0.1 to 0.4 over 3 seeds ≤ 0.3 ms" in text
    assert "-0.7 -0.6 to -0.4".replace("-", "\N{MINUS SIGN}") in text


def test_provenance_machine_versions_and_time_are_shown(page):
    text = " ".join(Page(page).text.split())
    for part in (
        "real: <script",
        "Fast CPU, 8 cores, 31.9 GiB, Linux",
        "gpu (H100)",
        "python 3.12.1",
        "1 min 5 s",
        "loky",
    ):
        assert part in text


def test_traceback_is_folded(page):
    assert re.search(r"<details class=\"card\"><summary>.*RuntimeError: &lt;script.*</summary><pre>Traceback", page)


def test_missing_figure_file_is_an_error_and_the_old_page_stays(page, tmp_path):
    (tmp_path / "a.png").unlink()
    with pytest.raises(FileNotFoundError):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page
