import json

import pytest

from gyri.reproduce.cli import main


def test_list_shows_experiments_and_broken_papers(papers, capsys):
    assert main(["list"]) == 1
    output, errors = capsys.readouterr()
    assert "good/squares" in output
    assert "Figure 10" in output
    assert "broken: the experiments cannot be imported" in errors


def test_list_of_one_paper(papers, capsys):
    assert main(["list", "good"]) == 0
    output, errors = capsys.readouterr()
    assert "bad/" not in output
    assert errors == ""


def test_run_writes_results_and_report(papers, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["run", "good/squares", "--out", str(out)]) == 0
    output, errors = capsys.readouterr()
    assert "2 met, 0 missed, 1 reported, 0 crashed, 0 not run" in output
    assert str(out / "report.html") in output
    assert "good/squares: 2 met, 1 reported" in errors
    assert json.loads((out / "results" / "good" / "squares.json").read_text())["status"] == "finished"

    page = (out / "report.html").read_text()
    (out / "report.html").unlink()
    assert main(["report", str(out)]) == 0
    assert (out / "report.html").read_text() == page


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["bad/missed"], 0),
        (["bad/missed", "--strict"], 3),
        (["good/squares", "--strict"], 0),
        (["bad/lacks", "--strict"], 0),
        (["bad/raises"], 1),
        (["bad/missed", "bad/dies", "--strict"], 1),
        (["broken", "good/squares"], 1),
    ],
)
def test_exit_status(papers, tmp_path, arguments, status):
    assert main(["run", *arguments, "--out", str(tmp_path / "out")]) == status
    assert (tmp_path / "out" / "report.html").exists()


def test_broken_paper_is_in_the_report_until_it_imports_again(papers, tmp_path):
    out = tmp_path / "out"
    main(["run", "broken", "--out", str(out)])
    assert "no_such_module_anywhere" in (out / "report.html").read_text()
    source = next(papers.glob("*/good.py"))
    source.with_name("broken.py").write_text(source.read_text().replace('"good"', '"broken"'))
    assert main(["run", "broken/squares", "--out", str(out)]) == 0
    assert "no_such_module_anywhere" not in (out / "report.html").read_text()


@pytest.mark.parametrize("command", ["list", "run"])
def test_unknown_paper_exits_with_2_and_the_known_names(papers, tmp_path, capsys, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([command, "nothing"]) == 2
    errors = capsys.readouterr().err
    assert "unknown nothing" in errors
    assert "good" in errors


@pytest.mark.parametrize(
    "arguments", [[], ["run", "--scale", "huge"], ["run", "--backend", "slurm"], ["run", "--jobs", "two"], ["report"]]
)
def test_wrong_arguments_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_zero_jobs_exit_with_2(papers, tmp_path, capsys):
    assert main(["run", "good", "--jobs", "0", "--out", str(tmp_path / "out")]) == 2
    assert "jobs: expected" in capsys.readouterr().err


def test_resume_runs_only_the_rest(papers, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    main(["run", "good/squares", *out])
    capsys.readouterr()
    assert main(["run", "good/squares", "bad/missed", "--resume", *out]) == 0
    output, errors = capsys.readouterr()
    assert "good/squares" not in errors
    assert "bad/missed" in errors
    assert "2 met, 1 missed" in output


def test_nothing_installed_says_what_to_install(papers, capsys, monkeypatch):
    monkeypatch.setattr("gyri.reproduce.registry.entry_points", lambda group: [])
    assert main(["list"]) == 0
    assert 'pip install "gyri-' in capsys.readouterr().out
    assert main(["run"]) == 2
    assert 'pip install "gyri-' in capsys.readouterr().err
