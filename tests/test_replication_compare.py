"""Records of runs, and what is said of two of them: made from reports written by hand, so that the truth is outside."""

import json
from pathlib import Path
from typing import Any

import pytest
from replication_notebooks import LEDGER, Papers

from collapse_lib.replication import catalogue, cli, record
from collapse_lib.replication.compare import Kind, compare
from collapse_lib.replication.record import RecordError

ROOT = Path(__file__).parents[1]


def claim(name: str, mean: float | None = 1.0, sd: float | None = 0.1, *, verdict: str = "holds") -> dict[str, Any]:
    told: dict[str, Any] = {"id": name, "text": "t", "verdict": verdict}
    if mean is not None:
        n = 1 if sd is None else 3
        told["measured"] = {"n": n, "mean": mean, "min": mean, "max": mean} | ({} if sd is None else {"sd": sd})
    return told


def notebook(
    key: str, *claims: dict[str, Any], state: str = "ran", parameters: dict[str, Any] | None = None
) -> dict[str, Any]:
    seconds = 60.0 if claims else None
    told = {"notebook": key, "state": state, "dataset": "mnist", "device": "cpu", "seconds": seconds}
    return told | {"parameters": parameters, "claims": claims}


def report(*notebooks: dict[str, Any], profile: str = "laptop") -> dict[str, Any]:
    return {
        "format": record.REPORT,
        "version": record.VERSION,
        "written": "2026-01-02T03:04:05+00:00",
        "profile": profile,
        "good": True,
        "sum_of_seconds": 3661.0,
        "provenance": {
            "command": "python /home/somebody/run_all.py",
            "commit": "0123456789ab",
            "collapse_lib": "0.1.0",
            "python": "3.11.0",
            "torch": "2.0",
            "platform": "Linux-somebody",
            "device": "cpu",
            "cores": 2,
        },
        "notebooks": list(notebooks),
    }


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[Kind, str, str | None]]:
    one, other = (record.Record.model_validate(each) for each in (old, new))
    return [(change.kind, change.notebook, change.claim) for change in compare(one, other).changes]


def kind_of(old: dict[str, Any], new: dict[str, Any], *, profile: str = "laptop") -> Kind | None:
    """What happened to the one claim of two runs."""
    found = changes(report(notebook("a/b", old)), report(notebook("a/b", new), profile=profile))
    return found[0][0] if found else None


# ---- what counts as a change -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("holds", "holds", None),
        ("holds", "FAILS", Kind.WORSE),
        ("differs", "FAILS", Kind.WORSE),
        ("not judged", "FAILS", Kind.WORSE),
        ("holds", "differs", Kind.WORSE),
        ("holds", "not judged", Kind.WORSE),
        ("FAILS", "holds", Kind.VERDICT),
        ("FAILS", "differs", Kind.VERDICT),
        ("not judged", "holds", Kind.VERDICT),
    ],
)
def test_verdicts(old: str, new: str, kind: Kind | None) -> None:
    assert kind_of(claim("A", verdict=old), claim("A", verdict=new)) == kind


def test_another_profile_judges_other_claims_and_that_is_no_loss() -> None:
    old = claim("A", verdict="holds")
    assert kind_of(old, claim("A", verdict="not judged"), profile="smoke") == Kind.VERDICT
    assert kind_of(old, claim("A", verdict="FAILS"), profile="smoke") == Kind.WORSE
    assert kind_of(claim("A", verdict="not judged"), claim("A", verdict="FAILS"), profile="paper") == Kind.WORSE


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ((1.0, 0.1), (1.09, 0.1), None),  # within the spread
        ((1.0, 0.1), (1.11, 0.1), Kind.VALUE),
        ((1.0, 0.1), (1.15, 0.2), None),  # the larger spread counts
        ((1.0, 0.2), (1.15, 0.1), None),
        ((1.0, None), (1.000009, None), None),  # rounding
        ((1.0, None), (1.00002, None), Kind.VALUE),
        ((-1e6, 0.0), (-1e6 - 9, 0.0), None),
        ((-1e6, 0.0), (-1e6 - 11, 0.0), Kind.VALUE),
        ((0.0, None), (1e-11, None), Kind.VALUE),
        ((3e-16, None), (9e-13, None), None),  # what double precision leaves
        ((0.0, 1e-16), (0.0, 5e-16), None),
        ((1.0, 0.1), (1.0, 0.19), None),
        ((1.0, 0.1), (1.0, 0.21), Kind.SPREAD),
        ((1.0, 0.21), (1.0, 0.1), Kind.SPREAD),
        ((1.0, 1e-7), (1.0, 3e-7), None),  # rounding again
        ((1.0, 0.1), (1.0, None), Kind.SPREAD),  # fewer seeds
        ((None, None), (1.0, None), Kind.VALUE),
        ((None, None), (None, None), None),
    ],
)
def test_values_and_spreads(
    old: tuple[float | None, float | None], new: tuple[float | None, float | None], kind: Kind | None
) -> None:
    assert kind_of(claim("A", *old), claim("A", *new)) == kind


def test_what_came_and_what_went() -> None:
    old = report(
        notebook("a/both", claim("A"), claim("B")), notebook("a/gone", claim("A")), notebook("a/unrun", claim("A"))
    )
    new = report(
        notebook("a/both", claim("A"), claim("C")), notebook("a/new", claim("A")), notebook("a/unrun", state="not run")
    )
    assert changes(old, new) == [
        (Kind.WORSE, "a/both", "B"),  # a claim that is lost is not one that holds
        (Kind.GONE, "a/gone", None),
        (Kind.NEW, "a/both", "C"),
        (Kind.NEW, "a/new", None),
    ]


def test_a_notebook_that_no_longer_delivers_is_worse() -> None:
    good, failed = notebook("a/b", claim("A")), notebook("a/b", state="failed")
    assert changes(report(good), report(failed)) == [(Kind.WORSE, "a/b", None)]
    assert changes(report(failed), report(good)) == [(Kind.NEW, "a/b", None)]
    assert changes(report(failed), report(failed)) == []


def test_the_most_important_comes_first() -> None:
    old = [claim(name) for name in "ABCDE"]
    new = [
        claim("A", sd=0.5),
        claim("B", 2.0),
        claim("C", 4.0),
        claim("D", verdict="differs"),
        claim("E", verdict="FAILS"),
        claim("F"),
    ]
    order = changes(report(notebook("a/b", *old)), report(notebook("a/b", *new)))
    assert [name for _, _, name in order] == ["D", "E", "C", "B", "A", "F"]


# ---- the command -----------------------------------------------------------------------------------------------------


def write(path: Path, content: dict[str, Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return str(path)


def test_the_command_reads_files_and_folders_and_says_what_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = write(tmp_path / "old" / "report.json", report(notebook("a/b", claim("A-1"), claim("A-2"), claim("A-3"))))
    new = [claim("A-1", 1.4), claim("A-2", verdict="FAILS"), claim("A-3")]
    write(tmp_path / "new" / "report.json", report(notebook("a/b", *new)))
    assert cli.main(["--compare", old, str(tmp_path / "new")]) == 1
    said = capsys.readouterr().out
    assert "old: profile laptop, cpu, 2026-01-02 03:04 UTC, commit 0123456789ab, 1 h 01 min in all" in said
    assert "3 claims compared: verdict got worse: 1, value moved: 1" in said
    rows = [line.split() for line in said.splitlines() if line.startswith("a/b")]
    assert rows[0][:5] == ["a/b", "A-2", "verdict", "got", "worse"]
    assert " ".join(rows[1]) == "a/b A-1 value moved 1.00 ± 0.1 (3), holds 1.40 ± 0.1 (3), holds 4 spreads"

    assert cli.main(["--compare", str(tmp_path / "new"), old]) == 0  # the other way round it got better
    assert "verdict changed: 1" in capsys.readouterr().out
    assert cli.main(["--compare", old, old]) == 0
    assert "3 claims compared: no verdict changed, no number moved" in capsys.readouterr().out
    assert sorted(each.name for each in tmp_path.iterdir()) == ["new", "old"]  # it ran and wrote nothing


def test_profiles_that_differ_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = write(tmp_path / "old.json", report(notebook("a/b", claim("A"))))
    new = write(tmp_path / "new.json", report(notebook("a/b", claim("A")), profile="paper"))
    assert cli.main(["--compare", old, new]) == 0
    assert "the profiles differ" in capsys.readouterr().out


def test_parameters_that_differ_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = {"profile": "smoke", "n": 10, "lr": 1.0, "seeds": [0, 1], "gone": True}
    new = {"profile": "laptop", "n": 20, "lr": 1.0, "seeds": [0]}
    one = [notebook("a/b", claim("A"), parameters=old), notebook("a/c", claim("A"), parameters=old)]
    other = [notebook("a/b", claim("A"), parameters=new), notebook("a/c", claim("A"), parameters=old)]
    first, second = write(tmp_path / "1.json", report(*one)), write(tmp_path / "2.json", report(*other))
    assert cli.main(["--compare", first, second]) == 0
    said = capsys.readouterr().out
    assert "parameters that differ\na/b  n: 10 → 20, seeds: [0, 1] → [0], gone: True → –\n\n2 claims compared" in said
    assert "a/c  " not in said
    untold = write(tmp_path / "3.json", report(notebook("a/b", claim("A"))))
    assert cli.main(["--compare", first, untold]) == 0
    assert "differ" not in capsys.readouterr().out


def test_what_only_came_or_went_moved_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = write(tmp_path / "old.json", report(notebook("a/b", claim("A")), notebook("a/c", claim("A"))))
    new = write(tmp_path / "new.json", report(notebook("a/b", claim("A"), claim("B"))))
    assert cli.main(["--compare", old, new]) == 0
    assert "1 claims compared: no verdict changed, no number moved, is gone: 1, is new: 1" in capsys.readouterr().out
    assert cli.main(["--compare", new, old]) == 1  # a claim is lost
    assert "1 claims compared: verdict got worse: 1, is new: 1" in capsys.readouterr().out


def test_what_one_run_was_not_asked_for_is_counted_and_not_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Part of the set is run with a changed parameter and held against a run of all: the others are no news."""
    all_of_them = report(notebook("a/b", claim("A")), notebook("a/c", claim("A")), notebook("a/d", state="failed"))
    some = report(notebook("a/b", claim("A")), notebook("a/c", state="not run"), notebook("a/d", state="not run"))
    old, new = write(tmp_path / "old.json", all_of_them), write(tmp_path / "new.json", some)
    for pair in ((old, new), (new, old)):
        assert cli.main(["--compare", *pair]) == 0
        said = capsys.readouterr().out
        assert "no number moved, run in one only, since not selected in the other: 2 notebooks" in said
        assert "a/c" not in said


def test_a_folder_of_profiles_will_do_if_one_has_a_report(tmp_path: Path) -> None:
    write(tmp_path / "smoke" / "report.json", report(profile="smoke"))
    (tmp_path / "paper").mkdir()
    assert record.read(tmp_path).profile == "smoke"
    write(tmp_path / "laptop" / "report.json", report())
    with pytest.raises(RecordError, match=r"has several reports; name one of .*/smoke, .*/laptop"):
        record.read(tmp_path)
    write(tmp_path / "report.json", report(profile="paper"))
    assert record.read(tmp_path).profile == "paper"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no such file"),
        ("{", "not JSON"),
        ("[1]", "neither a report nor a record"),
        ('{"cells": []}', "neither a report nor a record"),
        (json.dumps(report() | {"version": 1}), "of version 1, and this library reads version 2"),
        (json.dumps(report() | {"profile": "huge"}), r"damaged \(see profile\)"),
        (json.dumps(report(notebook("a/b", {"id": "A", "verdict": "perhaps"}))), "notebooks.0.claims.0.verdict"),
        (b"\xff\xfe", "not JSON"),
    ],
)
def test_a_file_that_is_no_report_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | bytes | None, told: str
) -> None:
    good, bad = write(tmp_path / "good.json", report()), tmp_path / "bad.json"
    if content is not None:
        bad.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RecordError, match=told):
        record.read(bad)
    assert cli.main(["--compare", good, str(bad)]) == 2
    assert f"run_all.py: {bad}: " in capsys.readouterr().err


def test_a_folder_without_a_report_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--compare", str(tmp_path), str(tmp_path)]) == 2
    assert f"{tmp_path / 'report.json'}: no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--compare", "a", "b", "--publish", "--profile", "laptop"], "only reads two reports"),
        (["fig_1", "--compare", "a", "b"], "only reads two reports"),
        (["fig_1", "--record"], "a record is of all notebooks"),
        (["--record", "--data", "digits"], "own data"),
        (["--record", "--set", "n=1"], "leave out --set, or --record"),
        (["--publish", "--profile", "laptop", "--set", "n=1"], "leave out --set, or --publish"),
        (["--compare", "a", "b", "--set", "n=1"], "only reads two reports"),
    ],
)
def test_options_that_do_not_go_together(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(options) == 2
    assert told in capsys.readouterr().err


# ---- the record ------------------------------------------------------------------------------------------------------


def test_a_record_is_the_report_without_what_is_of_the_machine(tmp_path: Path) -> None:
    long = claim("A-1", 1.23456789, 0.0123456789) | {"why": "w", "note": "/home/somebody"}
    parameters = {"seeds": [0, 1], "lr": 1.0, "beta": None}
    failed = notebook("a/c", state="failed") | {"failure": {"log": "/home/somebody/x.log"}}
    path = tmp_path / "results" / "laptop.json"
    record.write(
        path, report(notebook("a/b", long, claim("A-2", None, verdict="not judged"), parameters=parameters), failed)
    )
    text = path.read_text()
    assert "somebody" not in text
    kept = record.read(path)
    assert kept.format == record.RECORD
    assert (kept.sum_of_seconds, kept.provenance.cores) == (3661.0, 2)
    one, other = kept.notebooks
    assert (one.parameters, other.parameters) == (parameters, None)
    assert '"parameters": {"seeds": [0, 1], "lr": 1.0, "beta": null}' in text
    assert one.claims[0].measured is not None
    assert (one.claims[0].measured.mean, one.claims[0].measured.sd) == (1.234568, 0.01234568)
    assert (one.claims[1].verdict, one.claims[1].measured) == ("not judged", None)
    assert (other.state, other.claims) == ("failed", [])
    assert [line.strip()[:14] for line in text.splitlines() if '"verdict"' in line] == [
        '{"id": "A-1", ',
        '{"id": "A-2", ',
    ]
    whole = report(notebook("a/b", claim("A-1", 1.23456789, 0.0123456789), claim("A-2", None, verdict="not judged")))
    assert changes(whole, json.loads(text)) == [(Kind.NEW, "a/c", None)]


def test_a_run_of_all_notebooks_is_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    papers = Papers(tmp_path / "notebooks")
    papers.add("one/good")
    papers.add("one/raises", "raise ValueError")
    run = ["--notebooks", str(papers.root), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.main([*run, "--record"]) == 1
    path = tmp_path / "results" / "smoke.json"
    assert f"recorded: {path}" in capsys.readouterr().out
    kept = record.read(path)
    assert [(each.notebook, each.state) for each in kept.notebooks] == [("one/good", "ran"), ("one/raises", "failed")]
    assert kept.sum_of_seconds == kept.notebooks[0].seconds
    assert kept.notebooks[0].parameters == catalogue.load(papers.root)[0].defaults | {
        "profile": "smoke",
        "dataset": "digits",
        "device": "cpu",
        "n_images": 10,
        "lr": 1.0,
    }
    assert str(tmp_path) not in path.read_text()
    assert cli.main(["--compare", str(path), str(tmp_path / "out" / "smoke")]) == 0
    assert "1 claims compared: no verdict changed, no number moved" in capsys.readouterr().out


def test_a_record_of_what_there_is_no_more_is_seen(tmp_path: Path) -> None:
    papers = Papers(tmp_path / "notebooks")
    papers.add("one/good", ledger=LEDGER)
    notebooks = catalogue.load(papers.root)
    kept = report(notebook("one/good", claim("A-1")))
    assert record.strangers(record.Record.model_validate(kept), notebooks) == []
    kept["notebooks"] += [notebook("one/old", claim("B-1"))]
    kept["notebooks"][0] = notebook("one/good", claim("A-1"), claim("A-9"))
    assert record.strangers(record.Record.model_validate(kept), notebooks) == ["one/good A-9", "one/old"]


def test_the_records_of_this_project_name_notebooks_and_claims_that_exist() -> None:
    """None is there before the first whole run."""
    notebooks = catalogue.load(ROOT / "notebooks")
    for path in sorted((ROOT / "results").glob("*")):
        kept = record.read(path)
        assert path.name == f"{kept.profile}.json"
        assert kept.format == record.RECORD
        assert record.strangers(kept, notebooks) == []
        assert path.stat().st_size < 200_000
