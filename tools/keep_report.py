"""Keep a run of the experiments for the pages: `python -m tools.keep_report report`.

Copies the records of a run of `gyri-reproduce`, and its figures as small PNGs, into docs/reproduction, from which the
pages' copy of the report is written. Records of papers that were not run stay.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from .projects import ROOT

KEPT = ROOT / "docs" / "reproduction"
WIDTH, COLOURS = 900, 64


def shrink(source: Path, target: Path) -> None:
    """Write a figure with fewer pixels and colours; lines and labels stay legible."""
    from PIL import Image

    with Image.open(source) as image:
        flat = Image.new("RGB", image.size, "white")
        flat.paste(image, mask=image.convert("RGBA").getchannel("A"))
    if flat.width > WIDTH:
        flat = flat.resize((WIDTH, round(flat.height * WIDTH / flat.width)), Image.Resampling.LANCZOS)
    target.parent.mkdir(parents=True, exist_ok=True)
    flat.quantize(COLOURS, dither=Image.Dither.NONE).save(target, optimize=True)


def keep(out: Path, kept: Path = KEPT) -> list[str]:
    """Copy the records and figures of a run; return the experiments' names.

    Raises
    ------
    ValueError
        If there is no record, or one is damaged, or an experiment crashed.
    """
    from gyri.reproduce.record import load_records

    records = load_records(out)
    crashed = [record.id for record in records if record.status == "crashed"]
    if crashed:
        raise ValueError(f"{out}: {', '.join(crashed)} crashed; a report with crashes is not kept")
    for paper in {record.paper for record in records}:
        for folder in ("results", "figures"):
            shutil.rmtree(kept / folder / paper, ignore_errors=True)
    for record in records:
        for figure in record.figures:
            shrink(out / figure.png, kept / figure.png)
        # The repository has the code, and draws the figures as vectors again.
        replace(record, code="", figures=tuple(replace(f, svg="") for f in record.figures)).save(kept)
    return [record.id for record in records]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, metavar="DIR", help="folder of a run")
    for name in keep(parser.parse_args().out):
        print(name)


if __name__ == "__main__":
    main()
