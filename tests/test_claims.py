"""Claims: what is measured, what follows, and that the ledger shows, prints and stores the same."""

import json
import math
import re
import statistics
from html.parser import HTMLParser

import nbclient
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.formatters import DisplayFormatter
from paper_files import HEAD

from collapse_lib import claims, ledger
from collapse_lib.claims import Ledger, judge, measure
from collapse_lib.ledger import ClaimError, format_number, read_ledger
from collapse_lib.paper import Claim, Expected, PaperFileError

PAPER = (
    HEAD
    + """
[notebooks.elbo]
title = "The ELBO"
replicates = "Fig. 1"
figures = 1
timeout_s = {smoke = 60, laptop = 300, paper = 3600}
dataset = "mnist"

[notebooks.elbo.claims]
EP-1 = {text = "the ELBO <= the likelihood & stays", kind = "mechanism", expected = {max = 1e-4}, reported = "a <b>"}
EP-2 = {text = "the gaps add up", kind = "mechanism", expected = {is = true}, why = "an identity"}
EP-3 = {text = "beta hurts", kind = "mechanism", expected = {min = 0}, differs = "it helps: [b]other[/b] data"}

[notebooks.elbo.claims.EP-4]
text = "its value"
kind = "headline"
profiles = ["laptop", "paper"]
reported = 961.99130
source = "Fig. 1"
expected = {equals = 961.9913, atol = 1e-3}
"""
)
GOOD = {"EP-1": [-3.2e-7, -3.2e-5], "EP-2": [True, True], "EP-3": -0.5, "EP-4": 961.9913221}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with one paper of one notebook; the current folder is its top."""
    folder = tmp_path / "notebooks" / "linear"
    folder.mkdir(parents=True)
    (folder / "paper.toml").write_text(PAPER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fill(checkout):
    def fill(profile="paper", dataset="mnist", **changed):
        book = Ledger.open("linear/elbo", profile=profile, dataset=dataset)
        for name, value in (GOOD | changed).items():
            if value is not None:
                book.record(name, value)
        return book

    return fill


def verdicts(book):
    return {claim.id: claim.verdict for claim in book.result().claims}


# --- measuring


NUMBERS = st.floats(-1e6, 1e6, allow_subnormal=False)


@given(st.lists(NUMBERS, min_size=1, max_size=8), st.sampled_from([list, tuple, np.array, pd.Series, torch.tensor]))
def test_measure_agrees_with_the_statistics_module(values, container):
    values = [float(value) for value in np.float32(values)]  # what a tensor keeps
    measured = measure(container(values))
    assert (measured.n, measured.min, measured.max) == (len(values), min(values), max(values))
    assert measured.mean == pytest.approx(statistics.fmean(values), rel=1e-12, abs=1e-9)
    if len(values) == 1:
        assert measured.sd is None
    else:
        assert measured.sd == pytest.approx(statistics.stdev(values), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    "value", [2.5, np.float32(2.5), np.array(2.5), torch.tensor(2.5, dtype=torch.bfloat16, requires_grad=True)]
)
def test_measure_takes_every_kind_of_number(value):
    assert measure(value).model_dump() == {"n": 1, "mean": 2.5, "sd": None, "min": 2.5, "max": 2.5}


@pytest.mark.parametrize("value", [True, np.True_, torch.tensor(True), [True, False], torch.tensor([True, False])])
def test_measure_takes_every_kind_of_truth(value):
    measured = measure(value, truth=True)
    flat = [True] if measured.n == 1 else [True, False]
    assert (measured.mean, measured.min, measured.sd) == (sum(flat) / len(flat), min(flat), None)


def test_equal_numbers_have_their_own_mean_and_no_spread():
    assert np.mean([0.1] * 3) != 0.1, "or this tests nothing"
    measured = measure([0.1] * 3)
    assert (measured.mean, measured.sd) == (0.1, 0)


@pytest.mark.parametrize(
    ("value", "truth", "words"),
    [
        (True, False, "takes a number, or one a seed (1-D), not True"),
        ([True, False], False, "not an array of bool of shape (2,)"),
        (1, True, "takes a truth value, or one a seed (1-D), not 1"),
        ([0, 1], True, "takes a truth value"),
        ("3", False, "not '3'"),
        (None, False, "not None"),
        (1j, False, "not 1j"),
        ([], False, "of shape (0,)"),
        (np.ones((2, 3)), False, "of shape (2, 3)"),
        (math.nan, False, "1 of 1 are NaN or infinite"),
        ([1.0, math.inf, math.nan], False, "2 of 3 are NaN or infinite"),
    ],
)
def test_measure_refuses_the_rest(value, truth, words):
    with pytest.raises(ClaimError, match=re.escape(words)):
        measure(value, truth=truth)


# --- judging


def claim_of(expected, **changed):
    return Claim.model_validate({"text": "t", "kind": "mechanism", "expected": expected} | changed)


@given(st.lists(NUMBERS, min_size=1, max_size=5), st.tuples(NUMBERS, NUMBERS).map(sorted), st.booleans())
def test_every_seed_or_the_mean_must_be_in_range(values, bounds, mean):
    low, high = bounds
    claim = claim_of({"min": low, "max": high}, judge="mean" if mean else "every")
    measured = measure(values)
    truth = low <= measured.mean <= high if mean else all(low <= value <= high for value in values)
    assert judge(claim, measured, "paper") == ("holds" if truth else "FAILS", None)


@given(st.lists(st.booleans(), min_size=1, max_size=4), st.booleans())
def test_every_truth_must_be_as_expected(values, expected):
    verdict = judge(claim_of({"is": expected}), measure(values, truth=True), "smoke").verdict
    assert verdict == ("holds" if all(value is expected for value in values) else "FAILS")


def test_a_range_counts_in_its_own_profile():
    claim = claim_of({"smoke": {"max": 3}, "laptop": {"max": 2}, "paper": {"max": 1}})
    assert [judge(claim, measure(1.5), profile).verdict for profile in ("smoke", "laptop", "paper")] == [
        "holds",
        "holds",
        "FAILS",
    ]


def test_a_known_difference_fails_when_it_unexpectedly_holds():
    claim = claim_of({"min": 0}, differs="a reason")
    assert judge(claim, measure(-1), "paper") == ("differs", "a reason")
    assert judge(claim, measure([-1, 1]), "paper") == ("differs", "a reason")
    assert judge(claim, measure(1), "paper") == ("FAILS", "unexpectedly holds")


def test_what_holds_against_the_document_says_so():
    claim = claim_of({"min": 0}, reported="below 0", contradicts=True)
    assert judge(claim, measure(1), "paper") == ("holds", "and contradicts the document")
    assert judge(claim, measure(-1), "paper") == ("FAILS", None)


# --- the ledger


def test_verdicts_of_a_good_run(fill):
    book = fill()
    assert verdicts(book) == {"EP-1": "holds", "EP-2": "holds", "EP-3": "differs", "EP-4": "holds"}
    assert book.result().failed == []
    book = fill(**{"EP-1": [0, 2e-4], "EP-2": [True, False], "EP-3": 1, "EP-4": 961.9930})
    assert book.result().failed == ["EP-1", "EP-2", "EP-3", "EP-4"]


@pytest.mark.parametrize(
    ("profile", "dataset", "note"),
    [
        ("smoke", "mnist", "judged in profile laptop and paper only"),
        ("smoke", "digits", "judged in profile laptop and paper only"),
        ("paper", "fashion_mnist", "judged on mnist only"),
    ],
)
def test_a_headline_is_judged_on_its_own_ground_only(fill, profile, dataset, note):
    for value in (None, 0.0):  # it need not be recorded; if it is, it is shown
        entry = fill(profile, dataset, **{"EP-4": value}).result().claims[-1]
        assert (entry.verdict, entry.note) == ("not judged", note)
        assert (entry.measured is None) == (value is None)
        assert entry.expected.equals == 961.9913
    with pytest.raises(ClaimError, match="not recorded in linear/elbo: EP-4; record every claim first"):
        fill("laptop", "mnist", **{"EP-4": None}).result()


def test_a_mechanism_is_judged_everywhere(fill):
    for profile, dataset in [("smoke", "digits"), ("laptop", "mnist"), ("paper", "omniglot")]:
        assert verdicts(fill(profile, dataset, **{"EP-1": 1}))["EP-1"] == "FAILS"


def test_what_was_recorded_is_shown_before_the_error_that_names_the_rest(fill, capsys):
    book = fill(**{"EP-1": None, "EP-3": None})
    for refused in (book.verdicts, book.result, book.show):
        assert capsys.readouterr().out == ""
        with pytest.raises(ClaimError, match="not recorded in linear/elbo: EP-1, EP-3; record"):
            refused()
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| EP-")]
    assert [line.strip("| ").split()[0] for line in shown] == ["EP-2", "EP-4"]
    assert shown[0].split("|")[-2].strip() == "holds"


def test_verdict_lines_are_of_mechanisms_and_the_same_for_all_numbers(fill, capsys):
    fill().verdicts()
    expected = "EP-1 holds: the ELBO <= the likelihood & stays\nEP-2 holds: the gaps add up\nEP-3 differs: beta hurts\n"
    assert capsys.readouterr().out == expected
    fill("smoke", "digits", **{"EP-1": -7.25, "EP-3": [-3, 2], "EP-4": None}).verdicts()
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("claim", "value", "words"),
    [
        ("EP1", 1, "no claim 'EP1' in linear/elbo; did you mean EP-1? it has EP-1, EP-2, EP-3, EP-4"),
        (
            "EP-2",
            1.0,
            "claim EP-2 of linear/elbo takes a truth value, or one a seed (1-D), not 1.0; its claims are EP-1,",
        ),
        ("EP-1", True, "claim EP-1 of linear/elbo takes a number"),
        ("EP-1", math.nan, "NaN or infinite; its claims are EP-1, EP-2, EP-3, EP-4"),
        ("EP-3", 0.0, "claim EP-3 of linear/elbo is recorded already, as are EP-3; record each once"),
    ],
)
def test_a_wrong_record_is_refused_and_changes_nothing(checkout, claim, value, words):
    book = Ledger.open("linear/elbo", profile="paper", dataset="mnist")
    book.record("EP-3", -1.0)
    with pytest.raises(ClaimError, match=re.escape(words)):
        book.record(claim, value)
    for name in ("EP-1", "EP-2", "EP-4"):
        book.record(name, GOOD[name])
    assert book.result().claims[2].measured.mean == -1.0


# --- finding paper.toml


@pytest.mark.parametrize("below", ["", "notebooks", "notebooks/linear", "executed/smoke/linear"])
def test_the_paper_file_is_found_from_anywhere_in_the_checkout(checkout, monkeypatch, below):
    (checkout / below).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(checkout / below)
    assert Ledger.open("linear/elbo", profile="paper", dataset="mnist").name == "linear/elbo"


def test_a_paper_folder_outside_a_checkout_is_enough(checkout, monkeypatch):
    (checkout / "notebooks" / "linear").rename(checkout / "linear")
    monkeypatch.chdir(checkout / "linear")
    assert Ledger.open("linear/elbo", profile="paper", dataset="mnist").name == "linear/elbo"


def test_the_checkout_of_the_library_is_the_last_resort(checkout, monkeypatch, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    with pytest.raises(PaperFileError) as caught:
        Ledger.open("linear/elbo", profile="paper", dataset="mnist")
    assert str(elsewhere / "notebooks" / "linear" / "paper.toml") in str(caught.value)
    monkeypatch.setattr(claims, "__file__", str(checkout / "collapse_lib" / "claims.py"))
    assert Ledger.open("linear/elbo", profile="paper", dataset="mnist").name == "linear/elbo"


@pytest.mark.parametrize(
    ("name", "profile", "words"),
    [
        ("elbo", "paper", "no notebook 'elbo'; name it <paper>/<notebook>"),
        ("linear/elbow", "paper", "it has elbo"),
        ("linear/elbo", "full", "no profile 'full'; use one of smoke, laptop, paper"),
    ],
)
def test_a_ledger_that_is_not_there(checkout, name, profile, words):
    with pytest.raises(ClaimError, match=re.escape(words)):
        Ledger.open(name, profile=profile, dataset="mnist")


# --- what is shown


class Table(HTMLParser):
    """Rows of cells of text; refuses what is not nested properly and what would need a network."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.open, self.styles = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert tag in {"table", "caption", "tr", "th", "td", "b", "br", "small"}
        self.styles += [value for name, value in attrs if name == "style"]
        if tag != "br":
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data + " "


def bundle(book):
    return DisplayFormatter().format(book.result())[0]


def test_the_table_says_it_all(fill):
    shown = bundle(fill())
    assert set(shown) == {"text/html", "text/plain", ledger.MIME}
    heading, *rows = Table(shown["text/html"]).rows
    assert [cell.split()[0] for cell in heading] == ["claim", "document", "measured", "expected", "verdict"]
    assert [[cell.strip() for cell in row] for row in rows] == [
        [
            "EP-1 the ELBO <= the likelihood & stays",
            "a <b>",
            "-1.6e-05 ± 2.2e-05 2 seeds, -3.200e-05 to -3.200e-07",
            "≤ 0.0001",
            "holds",
        ],
        ["EP-2 the gaps add up", "–", "2 of 2 true", "true an identity", "holds"],
        ["EP-3 beta hurts", "–", "-0.5000", "≥ 0", "differs it helps: [b]other[/b] data"],
        ["EP-4 its value", "961.99130 Fig. 1", "961.9913", "961.9913 ± 0.001", "holds"],
    ]
    for row in rows:
        for word in " ".join(row).split():
            assert word in shown["text/plain"]
    assert "linear/elbo, profile paper, data set mnist" in shown["text/plain"]
    assert max(map(len, shown["text/plain"].split("\n"))) <= 120


def test_the_table_is_readable_on_a_light_and_on_a_dark_page(fill):
    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    book = fill("smoke", **{"EP-2": False})
    styles = " ".join(Table(bundle(book)["text/html"]).styles)
    colours = re.findall(r"(?<![-\w])color:(#\w{6})", styles)
    assert len(colours) == 4
    assert len(set(colours)) == 4
    assert "background" not in styles
    dark_page = luminance("#111111")
    for colour in colours:
        assert 1.05 / (luminance(colour) + 0.05) > 4
        assert (luminance(colour) + 0.05) / (dark_page + 0.05) > 4


def test_without_a_notebook_the_text_is_printed(fill, capsys):
    book = fill()
    book.show()
    assert capsys.readouterr().out.rstrip("\n") == bundle(book)["text/plain"].rstrip("\n")


@given(
    st.floats(-1e300, 1e300, allow_subnormal=False),
    st.sampled_from([{}, {"max": 1.5}, {"min": -2e-7, "max": 3.2e-7}, {"equals": 961.9913, "atol": 1e-3}]),
)
def test_a_printed_number_is_close_and_judged_as_the_true_one(value, expected):
    expected = Expected.model_validate(expected) if expected else None
    shown = format_number(value, expected)
    assert float(shown) == pytest.approx(value, rel=5.01e-4, abs=0)
    assert expected is None or expected.holds(float(shown)) == expected.holds(value)
    assert len(shown) <= 24


@pytest.mark.parametrize(
    ("value", "expected", "spread", "shown"),
    [
        (961.9913221, {"equals": 961.9913, "atol": 1e-3}, None, "961.9913"),
        (962.0000001, {"equals": 961.9913, "atol": 1e-3}, None, "962.0000"),
        (-1793.98123, {"equals": -1793.98, "atol": 0.05}, None, "-1793.981"),
        (0.39221, {"min": 0.2, "max": 0.3922}, None, "0.39221"),
        (15692, {"equals": 15690, "atol": 40}, None, "15692"),
        (3.2e-7, {"max": 1e-6}, None, "3.200e-07"),
        (0.0, {"equals": 0, "atol": 1e-8}, None, "0"),
        (-0.0, None, None, "0"),
        (0.18710, {"max": 1.5}, 0.0155, "0.187"),
        (961.9913221, None, 0.00123, "961.9913"),
        (1e300, None, None, "1.000e+300"),
    ],
)
def test_numbers_have_the_digits_that_matter(value, expected, spread, shown):
    expected = Expected.model_validate(expected) if expected else None
    assert format_number(value, expected, spread) == shown


# --- what is stored


def notebook_showing(*bundles):
    outputs = [nbformat.v4.new_output("display_data", data=data) for data in bundles]
    text = nbformat.v4.new_output("stream", text="words")
    cells = [nbformat.v4.new_markdown_cell("# Title"), nbformat.v4.new_code_cell("", outputs=[text, *outputs])]
    return nbformat.v4.new_notebook(cells=cells)


def test_what_is_stored_is_read_back_equal_after_writing_to_disk(fill, tmp_path):
    book = fill()
    nbformat.write(notebook_showing(bundle(book)), tmp_path / "run.ipynb")
    notebook = nbformat.read(tmp_path / "run.ipynb", as_version=4)
    assert read_ledger(notebook) == book.result()
    assert read_ledger(json.loads((tmp_path / "run.ipynb").read_text())) == book.result()


def test_reading_what_is_not_one_ledger(fill):
    assert read_ledger(notebook_showing({"text/plain": "x"})) is None
    shown = bundle(fill())
    with pytest.raises(ClaimError, match=re.escape("shows 2 ledgers; call show() once")):
        read_ledger(notebook_showing(shown, shown))
    with pytest.raises(ClaimError, match=r"cannot be read \(see profile, dataset, claims\); run the notebook again"):
        read_ledger(notebook_showing({ledger.MIME: {"notebook": "linear/elbo"}}))


def test_an_executed_notebook_holds_one_output_with_all_forms(checkout):
    source = [
        "import numpy as np\nfrom collapse_lib.claims import Ledger\n"
        'ledger = Ledger.open("linear/elbo", profile="smoke", dataset="digits")\n'
        'ledger.record("EP-1", np.array([-1.0, -2.0]))\nledger.record("EP-2", True)\nledger.record("EP-3", -1)',
        "ledger.show()",
        "ledger.verdicts()",
    ]
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, source)))
    path = str(checkout / "notebooks" / "linear")
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": path}}).execute()
    _, shown, printed = notebook.cells
    (output,) = shown.outputs
    assert output.output_type == "display_data"
    assert set(output.data) == {"text/html", "text/plain", ledger.MIME}
    record = read_ledger(notebook)
    assert [(claim.id, claim.verdict) for claim in record.claims] == [
        ("EP-1", "holds"),
        ("EP-2", "holds"),
        ("EP-3", "differs"),
        ("EP-4", "not judged"),
    ]
    assert printed.outputs[0].text.splitlines() == record.verdict_lines()
