"""paper.toml: what it may say, and that every mistake is told with its line and its remedy."""

import re
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paper_files import HEAD

from collapse_lib.paper import PaperFileError, load_paper
from collapse_lib.toml_lines import key_lines, line_of

GOOD = (
    HEAD
    + """
[notebooks.elbo]
title = "The ELBO"
replicates = "Fig. 1"
figures = 2
timeout_s = {smoke = 60, laptop = 300, paper = 3600}
dataset = "mnist"

[notebooks.elbo.profiles.smoke]
k = 10
lr = 3e-3
fast = true
data = "digits"
betas = [0.10, 1, 4.0]

[notebooks.elbo.claims]
EP-1 = {text = "it is bounded", kind = "mechanism", expected = {max = 1e-4}}
EP-2.text = "it adds up"
EP-2.kind = "mechanism"
EP-2.expected.is = true

[notebooks.elbo.claims.EP-3]
text = "it arrives"
kind = "mechanism"
reported = 0.10
why = "seen"
[notebooks.elbo.claims.EP-3.expected]
smoke = {max = 1.5}
laptop = {max = 1.0, min = 0}
"paper" = {equals = 0, atol = 1e-8}

[notebooks.elbo.claims."EP-4"]
text = "its value"
kind = "headline"
profiles = ["paper"]
judge = "mean"
reported = "961.9913"
expected = {equals = 961.9913, rtol = 1e-3}
differs = "another data order"
"""
)


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "paper.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_a_good_file_is_read_as_written(write):
    paper = load_paper(write(GOOD))
    assert paper.paper.authors == ["Ada", "Grace"]
    notebook = paper.notebooks["elbo"]
    assert notebook.timeout_s == {"smoke": 60, "laptop": 300, "paper": 3600}
    smoke = notebook.profiles["smoke"]
    assert smoke == {"k": 10, "lr": 3e-3, "fast": True, "data": "digits", "betas": [0.1, 1, 4.0]}
    # papermill writes parameters by type: nothing but Python's own may reach it, and 1 is not 1.0 is not True.
    assert [type(value) for value in (*smoke.values(), *smoke["betas"])] == [
        int,
        float,
        bool,
        str,
        list,
        float,
        int,
        float,
    ]
    assert list(notebook.claims) == ["EP-1", "EP-2", "EP-3", "EP-4"]
    assert [claim.reported for claim in notebook.claims.values()] == [None, None, "0.10", "961.9913"]
    assert notebook.claims["EP-4"].judged_in == ("paper",)


@pytest.mark.parametrize(
    ("claim", "profile", "inside", "outside", "shown"),
    [
        ("EP-1", "smoke", [1e-4, -5.0], [1.1e-4], "≤ 0.0001"),
        ("EP-2", "paper", [1.0], [0.0], "true"),
        ("EP-3", "smoke", [1.5, -9], [1.6], "≤ 1.5"),
        ("EP-3", "laptop", [0.0, 1.0], [-0.1, 1.1], "0 to 1"),
        ("EP-3", "paper", [1e-8, -1e-8, 0], [1.1e-8, -1.1e-8], "0 ± 1e-08"),
        ("EP-4", "paper", [961.04, 962.95], [961.02, 962.96], "961.9913 ± 0.1 %"),
    ],
)
def test_what_is_expected(write, claim, profile, inside, outside, shown):
    expected = load_paper(write(GOOD)).notebooks["elbo"].claims[claim].expected_in(profile)
    assert all(map(expected.holds, inside))
    assert not any(map(expected.holds, outside))
    assert str(expected) == shown


# What is replaced in GOOD, by what, words of the complaint. The line to be named is the one marked, else the first.
MARK = "#!"
MISTAKES = [
    pytest.param(
        "year = 2019", "year = 2019\nyaer = 2019 #!", "no key `yaer`; use one of title, authors, year", id="unknown key"
    ),
    pytest.param(
        "figures = 2", "figures = 2\nfigure = 2 #!", "use one of title, replicates", id="unknown key of a notebook"
    ),
    pytest.param(
        "[paper]", "[papers]\n[paper]", "the file has no key `papers`; use one of paper, notebooks", id="unknown table"
    ),
    pytest.param(
        "{max = 1e-4}}", "{maximum = 1e-4}}", "`maximum`; use one of min, max", id="unknown key in an inline table"
    ),
    pytest.param(
        "EP-2.expected.is", "EP-2.because='x'\nEP-2.expected.is", "`because`", id="unknown key behind a dotted key"
    ),
    pytest.param("[paper]\ntitle", "[paper]\nsubtitle", "paper has no `title`; add it", id="missing key"),
    pytest.param(
        '[notebooks.elbo.claims."EP-4"]\ntext', '[notebooks.elbo.claims."EP-4"]\nwhy', "no `text`", id="missing text"
    ),
    pytest.param("[paper]", "[notebooks.elbo.profiles.laptop]", "the file has no `paper`; add it", id="missing paper"),
    pytest.param("year = 2019", 'year = "2019"', "paper.year is '2019'; it should be a valid integer", id="wrong type"),
    pytest.param("figures = 2", "figures = true", "should be a valid integer", id="truth for a number"),
    pytest.param(
        "smoke = {max = 1.5}",
        'smoke = {max = "1.5"}',
        "expected.smoke.max is '1.5'; it should",
        id="string for a bound",
    ),
    pytest.param("smoke = {max = 1.5}", "smoke = {max = inf}", "finite", id="infinite bound"),
    pytest.param("EP-2.expected.is = true", "EP-2.expected = 1", "is 1; write it as a table", id="number for a table"),
    pytest.param(
        '["Ada", "Grace"]', '[\n"Ada",\n3]', "paper.authors.1 is 3; it should", id="number in a list of names"
    ),
    pytest.param('["Ada", "Grace"]', "[]", "paper.authors is empty; give at least one", id="no authors"),
    pytest.param('EP-2.text = "it adds up"', 'EP-2.text = " "', "EP-2.text is empty; write it", id="empty text"),
    pytest.param(
        '"it arrives"', '"""it\narrives"""', "spans several lines; write it on one line", id="text over lines"
    ),
    pytest.param('kind = "headline"', 'kind = "title"', "is 'title'; use 'mechanism' or 'headline'", id="unknown kind"),
    pytest.param(
        "reported = 0.10", "reported = true", "EP-3.reported is True; write a number or a string", id="reported truth"
    ),
    pytest.param(
        "{max = 1.0, min = 0}", "{max = 1.0, min = 2}", "min 2 is greater than max 1; swap them", id="min above max"
    ),
    pytest.param(
        "smoke = {max = 1.5}", "smoke = {max = 1.5, is = true}", "(has is, max); give min and/or max", id="two forms"
    ),
    pytest.param("{equals = 0, atol = 1e-8}", "{equals = 0}", "(has equals); give min and/or max", id="no tolerance"),
    pytest.param("atol = 1e-8}", "atol = 0}", "atol is 0; it should be greater than 0", id="no width"),
    pytest.param("atol = 1e-8}", "rtol = 1e-8}", "rtol is no tolerance around 0; use atol", id="relative to zero"),
    pytest.param("{max = 1e-4}}", "{}}", "(has no key); give min", id="nothing expected"),
    pytest.param(
        'why = "seen"',
        'profiles = ["paper"]',
        "so it has no `profiles`; remove it, or say kind",
        id="mechanism with profiles",
    ),
    pytest.param(
        '[notebooks.elbo.claims."EP-4"]\ntext = "its value"\nkind = "headline"\nprofiles = ["paper"]',
        '[notebooks.elbo.claims."EP-4"]\ntext = "its value"\nkind = "headline"',
        'must say in which profiles it is judged; add profiles = ["paper"]',
        id="headline without profiles",
    ),
    pytest.param('profiles = ["paper"]', "profiles = []", "must say in which profiles", id="headline with no profile"),
    pytest.param(
        '["paper"]', '["full"]', "is 'full'; use 'smoke', 'laptop' or 'paper'", id="headline in an unknown profile"
    ),
    pytest.param(
        "[notebooks.elbo.claims.EP-3.expected]\nsmoke = {max = 1.5}",
        "[notebooks.elbo.claims.EP-3.expected]",
        "nothing is expected in smoke, where it is judged; add expected.smoke",
        id="mechanism not expected somewhere",
    ),
    pytest.param(
        "expected = {equals = 961.9913, rtol = 1e-3}",
        "expected.smoke = {max = 1}",
        "nothing is expected in paper, where it is judged; add expected.paper or correct `profiles`",
        id="headline not expected where judged",
    ),
    pytest.param(
        "expected = {equals = 961.9913, rtol = 1e-3}",
        "expected.paper = {max = 1}\nexpected.smoke = {max = 1} #!",
        "is never judged in smoke; remove the range",
        id="headline expected where not judged",
    ),
    pytest.param(
        '"paper" = {equals',
        '"full" = {equals = 0, atol = 1}\n"paper" = {equals',
        "use 'smoke', '",
        id="range of no profile",
    ),
    pytest.param(
        "EP-2.expected.is", 'EP-2.judge = "mean"\nEP-2.expected.is', "a truth has no mean; remove", id="mean of a truth"
    ),
    pytest.param(
        "EP-2.expected.is",
        "EP-2.contradicts = true\nEP-2.expected.is",
        "contradicts a document that says nothing; add what it says",
        id="contradicts nothing",
    ),
    pytest.param(
        "EP-2.expected.is",
        'EP-2.contradicts = true\nEP-2.reported = "no"\nEP-2.differs = "a reason"\nEP-2.expected.is',
        "both differs from the document and contradicts it; keep one",
        id="differs and contradicts",
    ),
    pytest.param('claims."EP-4"]', 'claims."EP 4"]', "EP 4 is no claim id; use letters", id="claim id"),
    pytest.param(
        "[notebooks.elbo]",
        "[notebooks.Elbo]\n[notebooks.elbo]",
        "Elbo is no notebook name; use small",
        id="notebook name",
    ),
    pytest.param(
        "profiles.smoke]", "profiles.medium]", "'medium'; use 'smoke' or 'laptop'", id="overrides of an unknown profile"
    ),
    pytest.param(
        "profiles.smoke]", "profiles.paper]", "the parameters cell itself; remove this table", id="overrides of paper"
    ),
    pytest.param(
        "k = 10",
        "k = 2020-01-01",
        "smoke.k is datetime.date(2020, 1, 1); use a bool",
        id="override that is no parameter",
    ),
    pytest.param(
        "k = 10", "k = nan", "smoke.k is nan; use a boolean, a finite number", id="override that is not finite"
    ),
    pytest.param(
        "betas = [0.10, 1, 4.0]", "betas = [[0.10], 1]", "smoke.betas is [0.1]; use a boolean", id="nested list"
    ),
    pytest.param("laptop = 300, paper = 3600}", "laptop = 300}", "no paper; give seconds", id="no limit in a profile"),
    pytest.param("laptop = 300", "laptop = 0", "timeout_s.laptop is 0; it should", id="limit of no time"),
    pytest.param("year = 2019", "year 2019", "correct the TOML syntax", id="syntax"),
    pytest.param("year = 2019", "year = 2019\nyear = 2020 #!", "Cannot overwrite a value", id="key given twice"),
    pytest.param("[notebooks.elbo.claims]", "[paper] #!", "correct the TOML syntax", id="table given twice"),
    pytest.param('text = "its value"', 'text = """its\nvalue', "Unterminated string", id="string left open"),
    pytest.param("fast = true", "fast = yes", "Invalid value", id="bad word"),
]


@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["unix", "windows"])
@pytest.mark.parametrize(("old", "new", "words"), MISTAKES)
def test_a_mistake_is_told_with_its_line_and_remedy(write, old, new, words, newline):
    assert GOOD.count(old) == 1
    text = GOOD.replace(old, new)
    mark = text.index(MARK) if MARK in new else text.index(new)
    number = 1 + text[:mark].count("\n")
    path = write(text.replace("\n", newline))
    with pytest.raises(PaperFileError) as caught:
        load_paper(path)
    told = str(caught.value).split("\n")
    assert any(line.startswith(f"{path}:{number}: ") and words in line for line in told), told
    assert all(re.search(r"; \S", line) for line in told), "every complaint ends in a remedy"


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(write):
    text = GOOD.replace("year = 2019", "year = 'x'").replace('kind = "headline"', 'kind = "title"')
    with pytest.raises(PaperFileError) as caught:
        load_paper(write(text))
    lines = [int(re.search(r"paper\.toml:(\d+):", line)[1]) for line in str(caught.value).split("\n")]
    assert lines == [4, 1 + GOOD[: GOOD.index('kind = "headline"')].count("\n")]


def test_a_file_that_is_no_text_names_the_line(write):
    path = write(b'[paper]\ntitle = "caf\xe9"\n')
    with pytest.raises(PaperFileError, match=re.escape(f"{path}:2: not UTF-8")):
        load_paper(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PaperFileError, match=r"nowhere\.toml: no such file; "):
        load_paper(tmp_path / "nowhere.toml")


NAMES = st.text("ab-1. \"'é#=[]", min_size=1, max_size=4)
TREES = st.recursive(
    st.integers(0, 9), lambda inner: st.dictionaries(NAMES, inner, min_size=1, max_size=3), max_leaves=12
).filter(lambda tree: isinstance(tree, dict))


def quoted(name):
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@given(TREES, st.data())
def test_lines_of_keys_however_they_are_written(tree, data):
    """Writes a random tree as a mixture of headers, dotted keys, inline tables and values over lines, noting lines."""
    text, noted = [], {}

    def note(path, subtree):
        noted[path] = len(text) + 1
        if isinstance(subtree, dict):
            for name, inner in subtree.items():
                note((*path, name), inner)

    def inline(value):
        if isinstance(value, dict):
            return "{" + ", ".join(f"{quoted(name)} = {inline(inner)}" for name, inner in value.items()) + "}"
        return f"[\n# comment\n[{value}],\n]" if data.draw(st.booleans()) else f'"""{value}\n[x]\ny = 1\n"""'

    def dotted(path, prefix, subtree):
        noted.setdefault(path, len(text) + 1)
        if isinstance(subtree, dict) and data.draw(st.booleans()):
            for name, inner in subtree.items():
                dotted((*path, name), [*prefix, quoted(name)], inner)
        else:
            note(path, subtree)
            text.extend(f"{' . '.join(prefix)} = {inline(subtree)}".split("\n"))

    def table(path, content):
        if path:
            noted[path] = len(text) + 1
            text.extend([f"[ {' . '.join(map(quoted, path))} ] # header", ""])
        below = []
        for name, value in content.items():
            if isinstance(value, dict) and data.draw(st.booleans()):
                below.append(name)
            else:
                dotted((*path, name), [quoted(name)], value)
        for name in below:
            table((*path, name), content[name])

    table((), tree)
    document = "\n".join(text)
    tomllib.loads(document)
    lines = key_lines(document)
    assert lines == noted
    assert all(line_of((*path, "no such key", "nor this"), lines) == line for path, line in noted.items())


def test_a_header_overrides_the_subtable_that_came_first():
    lines = key_lines("[a.b]\nx = 1\n\n[a]\ny = 1\n")
    assert lines == {("a",): 4, ("a", "b"): 1, ("a", "b", "x"): 2, ("a", "y"): 5}
