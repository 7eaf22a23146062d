"""What every chapter has in common, checked without running it. The notebooks themselves are run by nbval."""

import ast
import re
import tomllib
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
CHAPTERS = [path for path in NOTEBOOKS if re.match(r"\d\d-", path.name)]
MOST_LINES = 40
SETUP = re.compile(r'^REPOSITORY = "(.*?)"', re.MULTILINE)
# Our machines' folders, home directories, Colab's, and Windows drives; "/" alone is division.
ABSOLUTE = re.compile(r"""["'](?:/(?:home|root|tmp|work|Users|content|mnt|opt|usr|var)\b|[A-Z]:\\)""")

PLOTS = re.compile(r"plt\.(?!rcParams|close)|plotting\.(stack|band)$")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def prose(path):
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def name(path, cell):
    return f"{path.name}, cell {cell.get('id', '?')}"


def tags(cell):
    return cell.metadata.get("tags", [])


def calls(tree):
    """Yield the names of what is called here; the body of a function or lambda within is not run here."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)
        if not isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            yield from calls(node)


def drawing_cells(path):
    """Yield the cells that show a figure: they plot, or call a function of the notebook that plots."""
    drawers = set()

    def draws(tree):
        return any(re.match(r"plt\.(?!rcParams|close)|plotting\.(stack|band)$", c) or c in drawers for c in calls(tree))

    for cell in code(path):
        tree = ast.parse(without_magic(cell.source))
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            if draws(ast.Module(function.body, [])):
                drawers.add(function.name)
        hidden = {"remove-output", "remove-cell"} & set(tags(cell))
        if not is_setup(cell) and not hidden and draws(tree):
            yield cell


def without_magic(source):
    return "\n".join("pass" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines())


def is_setup(cell):
    return bool(SETUP.search(cell.source))


@each_notebook
def test_is_a_valid_notebook_with_cell_ids(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5), "cell ids need nbformat 4.5 or later"
    ids = [cell.id for cell in notebook.cells]
    assert len(ids) == len(set(ids)), "cell ids must differ"
    assert notebook.metadata.kernelspec.name == "python3"


@each_notebook
def test_holds_no_outputs_but_kept_ones(path):
    for cell in code(path):
        if "keep_output" not in tags(cell):
            assert not cell.outputs, f"{name(path, cell)} has outputs; run `nbstripout --keep-id {path.name}`"
            assert cell.execution_count is None, f"{name(path, cell)} has an execution count"


@each_notebook
def test_compared_cells_have_something_to_compare_with(path):
    """A stripped NBVAL_CHECK_OUTPUT cell would pass silently."""
    for cell in code(path):
        if "NBVAL_CHECK_OUTPUT" in cell.source:
            assert "keep_output" in tags(cell), f"{name(path, cell)} is compared but lacks the tag keep_output"
            assert cell.outputs, f"{name(path, cell)} is compared but has no stored output"


def test_set_up_cell_is_the_same_in_every_chapter():
    cells = {}
    for path in CHAPTERS:
        found = [cell.source for cell in code(path) if is_setup(cell)]
        assert len(found) == 1, f"{path.name} has {len(found)} set-up cells"
        assert is_setup(code(path)[0]), f"the first code cell of {path.name} is not its set-up"
        cells.setdefault(found[0], []).append(path.name)
    assert len(cells) <= 1, f"the set-up cells differ between {list(cells.values())}"


@each_chapter
def test_set_up_cell_knows_the_repository(path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    address = SETUP.search("\n".join(cell.source for cell in code(path))).group(1)
    assert address == project.get("urls", {}).get("Repository", ""), "set both with `make repository URL=...`"


@each_notebook
def test_code_cells_are_short_and_portable(path):
    for cell in code(path):
        lines = cell.source.count("\n") + 1
        assert lines <= MOST_LINES, f"{name(path, cell)} has {lines} lines; at most {MOST_LINES}"
        absolute = ABSOLUTE.search(cell.source)
        assert not absolute, f"{name(path, cell)} has the absolute path {absolute.group(0)}..."


@each_notebook
def test_figures_have_alternative_texts_and_captions(path):
    names = []
    for cell in drawing_cells(path):
        meta = cell.metadata.get("mystnb", {})
        alt = meta.get("image", {}).get("alt", "")
        figure = meta.get("figure", {})
        where = name(path, cell)
        assert len(alt) >= 30, f"{where} draws a figure without an alternative text: mystnb: image: alt"
        assert not re.search(r"\.(png|svg)$", alt), f"{where} has a file name as its alternative text"
        assert figure.get("caption"), f"{where} draws a figure without a caption: mystnb: figure: caption"
        assert figure.get("name", "").startswith("fig-"), f"{where} draws a figure without a name: mystnb: figure: name"
        names += [figure["name"], alt]
    assert len(names) == len(set(names)), f"two figures of {path.name} share a name or an alternative text"


@each_notebook
def test_no_backslash_of_a_formula_is_doubled(path):
    """MathJax takes two backslashes for a new line and shows the name behind them as letters."""
    doubled = re.findall(r"\\\\[A-Za-z]+", prose(path))
    assert not doubled, f"{path.name}: {', '.join(doubled)}"


@each_notebook
def test_drawings_are_folded(path):
    """A reader of the page wants the figure; the code that only draws it is a click away."""
    for cell in code(path):
        if re.match(r"figure, .*= plotting\.stack\(", cell.source) and cell.source.count("\n") > 12:
            assert "hide-input" in tags(cell), f"{name(path, cell)} only draws; fold it with the tag hide-input"


@each_chapter
def test_follows_the_template(path):
    text = prose(path)
    source = "\n".join(cell.source for cell in code(path))
    exercises = re.findall(r"^#{2,4} .*exercise \S*\d", text, re.MULTILINE | re.IGNORECASE)
    *before, reading = re.split(r"further reading", text, flags=re.IGNORECASE)

    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1, "one title"
    assert re.search(r"predict", text, re.IGNORECASE), "a question to predict"
    assert "explorer.Explorer(" in source, "an explorer"
    assert "claims.check(" in source, "a check of its claims"
    assert len(exercises) >= 3, "three numbered exercises"
    assert re.search(r"\.check\(\.\.\.\)|= \.\.\.", source), "an exercise with an untouched stub"
    assert ".solve(" in source, "a solution that is run"
    assert re.search(r"^#+ what we found", text, re.MULTILINE | re.IGNORECASE), "a section 'What we found'"
    assert before, "'Further reading' at the end"
    assert "{cite" in reading, "citations in 'Further reading'"


@each_chapter
def test_is_in_the_table_of_contents(path):
    assert re.search(rf"file: {path.stem}$", (ROOT / "_toc.yml").read_text(encoding="utf-8"), re.MULTILINE)
