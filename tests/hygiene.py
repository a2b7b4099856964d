"""What a published notebook must look like, as functions that say what is wrong with it, one problem a line."""

import ast
import io
import json
import re
import tokenize
import warnings
from collections.abc import Iterator

import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

from collapse_lib import paper
from collapse_lib.ledger import LedgerRecord, read_ledger
from collapse_lib.replication import notebook_file, parameters
from collapse_lib.replication.notebook_file import CHECKED, INJECTED, PARAMETERS

SECTIONS = (
    "Parameters",
    "What theory predicts",
    "Run",
    "Figures",
    "Ledger",
    "Deviations and corrections",
    "Provenance",
)

LONGEST_FUNCTION = 12  # lines: what it takes to draw a plot

# Absolute paths of machines, where no word or address continues into them.
MACHINE_PATH = re.compile(
    r"(?<![\w.~:/-])(?:/(?:home|root|Users|tmp|work|mnt|opt|usr|var|private)/\w|[A-Z]:\\\\?Users)[\w.\\/-]*"
)


def problems(notebook: NotebookNode, entry: paper.Notebook) -> list[str]:
    """Everything that is wrong with a published notebook that `entry` of its paper.toml describes."""
    return [
        *validity(notebook),
        *execution_order(notebook),
        *anatomy(notebook),
        *parameter_comments(notebook),
        *code(notebook),
        *machine_paths(notebook),
        *leftovers(notebook),
        *ledger(notebook, entry),
    ]


def validity(notebook: NotebookNode) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            nbformat.validate(notebook)
    except (nbformat.ValidationError, Warning) as error:
        yield f"not a valid notebook: {str(error).splitlines()[0]}"


def execution_order(notebook: NotebookNode) -> Iterator[str]:
    if any(cell.cell_type == "code" and not cell.source.strip() for cell in notebook.cells):
        yield "a code cell is empty"
    counts = [cell.execution_count for cell in notebook_file.code_cells(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"the cells were executed as {counts}, not once each from top to bottom"


# ---- anatomy ---------------------------------------------------------------------------------------------------------


def headings(cell: NotebookNode) -> list[str]:
    """The lines of a cell that are headings of level 1 or 2."""
    if cell.cell_type != "markdown":
        return []
    outside_code = "".join(cell.source.split("```")[::2])
    return [line.strip() for line in outside_code.splitlines() if re.match(r"##? ", line)]


def sections(notebook: NotebookNode) -> dict[str, list[NotebookNode]]:
    """The cells below each heading; the one with the heading is the first of its section."""
    found: dict[str, list[NotebookNode]] = {}
    cells: list[NotebookNode] = []
    for cell in notebook.cells:
        for heading in headings(cell):
            cells = found.setdefault(heading.lstrip("# "), [])
        cells.append(cell)
    return found


def anatomy(notebook: NotebookNode) -> Iterator[str]:
    title, *rest = [heading for cell in notebook.cells for heading in headings(cell)] or [""]
    if not title.startswith("# ") or notebook.cells[0].source.splitlines()[:1] != [title]:
        yield "does not begin with a title, `# ...`"
    if rest != [f"## {section}" for section in SECTIONS]:
        yield f"has the headings {rest}, not {', '.join(SECTIONS)}"
        return

    found = sections(notebook)
    opening, *below = found[title.lstrip("# ")]
    if len(opening.source.strip().splitlines()) < 2 and not below:
        yield "says nothing below its title: the question, and what the document says"
    for section in ("What theory predicts", "Deviations and corrections"):
        text = [cell.source for cell in found[section] if cell.cell_type == "markdown"]
        if "".join(text).strip() == f"## {section}":
            yield f"says nothing under {section}"
    for section, call in (("Run", ""), ("Ledger", ".show()"), ("Ledger", ".verdicts()"), ("Provenance", ".report(")):
        if not any(call in cell.source for cell in found[section] if cell.cell_type == "code"):
            yield f"has no code {call} under {section}".replace("  ", " ")
    if not notebook_file.images({"cells": found["Figures"]}):
        yield "shows no image under Figures"

    of_parameters = notebook_file.tagged(notebook, PARAMETERS)
    if [cell for cell in found["Parameters"] if PARAMETERS in notebook_file.tags(cell)] != of_parameters:
        yield "has its parameters in another section"
    for earlier, cell in zip([None, *notebook.cells], notebook.cells, strict=False):
        if INJECTED in notebook_file.tags(cell) and earlier not in of_parameters:
            yield "has injected parameters that do not follow the parameters cell"


def parameter_comments(notebook: NotebookNode) -> Iterator[str]:
    cells = notebook_file.tagged(notebook, PARAMETERS)
    if len(cells) != 1 or cells[0].cell_type != "code":
        yield f"has {len(cells)} cells tagged {PARAMETERS}, not one code cell"
        return
    (cell,) = cells
    yield from parameters.parse(cell.source).problems
    tokens = tokenize.generate_tokens(io.StringIO(cell.source).readline)
    comments = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    lines = cell.source.splitlines()
    for statement in ast.parse(cell.source).body:
        own = range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)
        above = statement.lineno - 1 in comments and lines[statement.lineno - 2].lstrip().startswith("#")
        if not above and comments.isdisjoint(own):
            yield f"has a parameter without a unit or reason: {lines[statement.lineno - 1]}"


# ---- content ---------------------------------------------------------------------------------------------------------


def code(notebook: NotebookNode) -> Iterator[str]:
    """A notebook tells, the library does: no class, no training loop, no function longer than a plot call."""
    for cell in notebook_file.code_cells(notebook):
        for node in ast.walk(ast.parse(TransformerManager().transform_cell(cell.source))):
            match node:
                case ast.ClassDef(name=name):
                    yield f"defines the class {name}"
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    length = (node.end_lineno or node.lineno) - node.lineno + 1
                    if length > LONGEST_FUNCTION:
                        yield f"defines {name} in {length} lines; more than {LONGEST_FUNCTION} belong in collapse_lib"
                case ast.Attribute(attr="backward"):
                    yield "trains by itself (.backward); that is collapse_lib.training's"


def machine_paths(notebook: NotebookNode) -> Iterator[str]:
    """Looks at all there is but images: sources, outputs, metadata."""
    for cell in notebook.cells:
        shown = [cell.source, json.dumps(cell.metadata), *(_readable(output) for output in cell.get("outputs", []))]
        yield from (f"shows the path {path}" for text in shown for path in MACHINE_PATH.findall(text))
    yield from (f"has the path {path} in its metadata" for path in MACHINE_PATH.findall(json.dumps(notebook.metadata)))


def _readable(output: NotebookNode) -> str:
    data = {kind: value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")}
    return json.dumps({**output, "data": data})


def leftovers(notebook: NotebookNode) -> Iterator[str]:
    """What belongs to one execution and would change with every other."""
    if unknown := notebook.metadata.keys() - {"kernelspec", "language_info", "collapse_lib"}:
        yield f"has volatile metadata: {', '.join(sorted(unknown))}"
    for cell in notebook.cells:
        if unknown := cell.metadata.keys() - {"tags"}:
            yield f"has a cell with volatile metadata: {', '.join(sorted(unknown))}"
    for output in notebook_file.outputs(notebook):
        if output.output_type == "error":
            yield f"shows an error, {output.ename}"
        if output.output_type == "stream" and output.name == "stderr":
            yield f"shows what was meant for a terminal: {output.text.strip().splitlines()[0]}"


# ---- claims ----------------------------------------------------------------------------------------------------------


def ledger(notebook: NotebookNode, entry: paper.Notebook) -> Iterator[str]:
    """The figures and claims that paper.toml promises are there, and what is printed is what the ledger holds."""
    if (images := len(notebook_file.images(notebook))) < entry.figures:
        yield f"shows {images} images of {entry.figures}"
    checked = notebook_file.tagged(notebook, CHECKED)
    if not checked:
        yield f"has no cell tagged {CHECKED}"
    if any(not cell.get("outputs") for cell in checked):
        yield "has a checked cell without output: nbval would pass whatever it prints"

    record = read_ledger(notebook)
    if record is None:
        yield "shows no ledger"
        return
    if record.profile == "smoke":
        yield "was published from a smoke run, which is not for readers"
    if record.failed:
        yield f"was published with claims that fail: {', '.join(record.failed)}"
    if outdated := list(_outdated(record, entry)):
        yield f"was judged by another paper.toml ({', '.join(outdated)}); run it again"

    printed = [_text(cell) for cell in checked if ".verdicts()" in cell.source]
    if not printed:
        yield f"has no cell tagged {CHECKED} that prints the verdicts"
    elif printed[0].splitlines() != record.verdict_lines():
        yield "prints other verdicts than its ledger holds"


def _text(cell: NotebookNode) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def _outdated(record: LedgerRecord, entry: paper.Notebook) -> Iterator[str]:
    judged = {claim.id: claim for claim in record.claims}
    yield from judged.keys() ^ entry.claims.keys()
    for name in judged.keys() & entry.claims.keys():
        then, now = judged[name], entry.claims[name]
        if (then.text, then.kind, then.expected) != (now.text, now.kind, now.expected_in(record.profile)):
            yield name
