import subprocess
import sys

import pytest

from gyri.reproduce import Data, Result, experiment, find_experiments, registry


@pytest.fixture(autouse=True)
def _empty_registry(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})


def one(scale, key, sweep):
    """One."""
    return Result([], {}, Data.simulated(f"{scale} {key} {sweep(abs, [-1])}"))


def test_decorated_function_runs_with_a_sequential_sweep():
    run = experiment(paper="p", figure="Figure 1", title="t")(one)
    assert run("quick", 3).data.name == "quick 3 [1]"
    assert run("paper", 3, lambda function, items: "mine").data.name == "paper 3 mine"
    assert run.__doc__ == "One."


def test_unknown_scale_is_an_error():
    with pytest.raises(ValueError, match="scale: expected one of"):
        experiment(paper="p", figure="Figure 1", title="t")(one)("large", 0)


def test_wrong_signature_is_an_error():
    with pytest.raises(ValueError, match=r"expected the arguments \(scale, key, sweep\)"):
        experiment(paper="p", figure="Figure 1", title="t")(lambda scale: None)


def test_paper_that_is_no_folder_name_is_an_error():
    with pytest.raises(ValueError, match="paper: expected letters"):
        experiment(paper="../p", figure="Figure 1", title="t")


def test_same_name_of_another_function_is_an_error_but_a_second_import_is_not():
    decorate = experiment(paper="p", figure="Figure 1", title="t")
    decorate(one)
    decorate(one)

    def other(scale, key, sweep):
        return Result([], {}, Data.simulated("none"))

    other.__name__ = "one"
    with pytest.raises(ValueError, match="has an experiment of this name"):
        decorate(other)


def test_experiments_are_found_through_entry_points(papers):
    found = find_experiments(["good"])
    assert [e.id for e in found] == ["good/squares", "good/processes"]
    assert (found.experiments[0].figure, found.experiments[0].description) == ("Figure 10", "Squares of seeds.")
    assert len(found) == 2
    assert not found.broken


def test_single_experiment_is_found(papers):
    assert [e.id for e in find_experiments(["good/processes", "bad/lacks"])] == ["bad/lacks", "good/processes"]


def test_broken_entry_point_does_not_hide_the_others(papers):
    found = find_experiments()
    assert {e.paper for e in found} == {"good", "bad", "slow", "flags"}
    assert [b.paper for b in found.broken] == ["broken"]
    assert "no_such_module_anywhere" in found.broken[0].error


def test_only_the_wanted_modules_are_imported(papers):
    find_experiments(["good"])
    package = next(papers.glob("fake_papers_*")).name
    assert f"{package}.good" in sys.modules
    assert f"{package}.slow" not in sys.modules


@pytest.mark.parametrize("unknown", ["nothing", "good/nothing"])
def test_unknown_paper_lists_the_known_ones(papers, unknown):
    with pytest.raises(ValueError, match=f"unknown {unknown}; known: .*good"):
        find_experiments([unknown])


def test_import_is_cheap():
    code = (
        "import sys, gyri.reproduce, gyri.reproduce.bench\n"
        "heavy = {'matplotlib', 'jinja2', 'joblib', 'jax', 'distributed', 'ray'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
