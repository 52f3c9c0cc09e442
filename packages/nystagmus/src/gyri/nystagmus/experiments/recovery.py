"""Recovery of patterns and trends on simulated eyes: the paper's quantitative experiment."""

from typing import Any

import numpy as np

from gyri.reproduce import Claim, Data, Result, experiment

from .setting import Comparison, Score, compare

SIZES = {"quick": (8, 5000, 40), "paper": (100, 10_000, 100)}  # recordings, samples, iterations
MIN_STD = 2.0  # degrees


OVERLAP = "of the minimum itself: repetitions of an atom of 1.5 periods overlap, and share the movement there"


def gather(rows: list[Comparison], name: str) -> Any:
    """Scores of one method, a `Score` of arrays over recordings."""
    columns: Any = zip(*(getattr(row, name) for row in rows), strict=True)
    return Score(*[np.array(column) for column in columns])  # type: ignore[arg-type]


def make_claims(rows: list[Comparison]) -> list[Claim]:
    """Claims over recordings: median and range, or the part of the recordings of which something holds."""
    joint, two_step, half, half_two_step, masked, no_trend = (gather(rows, name) for name in Comparison._fields[:6])
    frequency = np.abs(np.array([row.frequency for row in rows]) - 1)
    code = "authors' code, four signals, unequal smoothing: "
    return [
        Claim.at_least("correlation of the pattern, joint", f"{code}.80 to .96", joint.correlation, 0.93, note=OVERLAP),
        Claim.info("correlation of the pattern, two steps, same mu", f"{code}.03 to .36", two_step.correlation),
        Claim.info("correlation of the pattern, no trend", None, no_trend.correlation),
        Claim.info("error of the pattern's signal, joint", None, joint.pattern),
        Claim.info("error of the pattern's signal, two steps, same mu", None, two_step.pattern),
        Claim.at_least(
            "part of the recordings where joint has the lower error",
            None,
            np.mean(joint.pattern < two_step.pattern),
            0.8,
            note=f"of {len(joint.pattern)} recordings",
        ),
        Claim.info("detrending error, joint", f"{code}.28 to .77", joint.detrending),
        Claim.info("detrending error, two steps, same mu", f"{code}.98 to 1.01", two_step.detrending),
        Claim.between("detrending error, joint over two steps", None, joint.detrending / two_step.detrending, 0.0, 1.1),
        Claim.at_least(
            "at half the mu: part where joint detrends with at most .85 of the error",
            None,
            np.mean(half.detrending <= 0.85 * half_two_step.detrending),
            0.75,
        ),
        Claim.at_least("part of the frequencies within 5 %", None, np.mean(frequency <= 0.05), 0.75),
        Claim.at_most("correlation lost with 10 % blinks", None, joint.correlation - masked.correlation, 0.05),
        Claim.at_most(
            "largest relative rise of the objective", "checks are off", [row.objective_rises for row in rows], 1e-5
        ),
    ]


@experiment(paper="nystagmus", figure="Simulated data", title="Patterns and trends recovered from simulated eyes")
def recovery(scale: str, key: int, sweep: Any) -> Result:
    """Simulated eyes with saccades, slow movements and noise, the nystagmus at least 2 degrees (standard deviation).

    One atom of one and a half true periods, default settings. Joint learning and the two steps get the same mu: the
    authors' code smooths by a factor std(X) less in two steps, so that its comparison flatters the joint method; the
    advantage is real, and smaller than there. The automatic mu detrends well by itself; at half of it only the joint
    method does.

    Paper scale: about 5 CPU minutes (a part of the 11 that the README has for all four: 12 times the recordings, 5
    times the work of each).
    """
    n_signals, n_times, max_iter = SIZES[scale]
    rows = sweep(compare, [(key + i, n_times, max_iter, MIN_STD) for i in range(n_signals)])
    caption = f"Scores of {n_signals} recordings, joint against two steps, the same mu for both."
    data = Data.simulated(
        f"the paper's simulation with its two slips corrected, {n_signals} recordings of {n_times} samples"
    )
    return Result(make_claims(rows), {"Recovery": draw(rows)}, data, {"Recovery": caption})


def draw(rows: list[Comparison]) -> Any:
    """One panel a score, one point a recording."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    titles = ("Correlation of the pattern", "Detrending error", "Error of the pattern's signal")
    for ax, name, title in zip(figure.subplots(1, 3), Score._fields, titles, strict=True):
        for color, first, second, label in (
            ("C0", "joint", "two_step", "automatic mu"),
            ("C1", "joint_half", "two_step_half", "half of it"),
        ):
            x, y = getattr(gather(rows, second), name), getattr(gather(rows, first), name)
            ax.plot(x, y, "o", color=color, alpha=0.7, label=label)
        low, high = ax.dataLim.min[0], ax.dataLim.max[0]
        ax.plot([low, high], [low, high], color="0.6", linewidth=1, zorder=0)
        ax.set(xlabel="two steps", ylabel="joint", title=title)
        ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return figure
