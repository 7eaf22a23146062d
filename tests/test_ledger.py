"""The claim ledger is complete, agrees with the notebooks, and every check and exercise in them can fail.

The functions take the folder of the book, so that they are tested here on small stand-ins as well.
"""

import contextlib
import pkgutil
import re
import sys
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
import nbformat
import pytest
import torch
from IPython.display import display
from matplotlib import pyplot

BOOK = Path(__file__).resolve().parents[1] / "book"
COLUMNS = ("Item", "What it says", "Where", "Verdict", "Checks", "Note")
NOT_RUN = "not run"
VERDICTS = {
    "holds",
    "holds, corrected",
    "fails as printed",
    "reproduced",
    "reproduced, corrected",
    "differs",
    NOT_RUN,
}
FIGURE_VERDICTS = {"reproduced", "reproduced, corrected", "differs", NOT_RUN}
KINDS = {
    "Assumption": (1,),
    "Proposition": (2, 3, 5, 7, 8, 19, 20, 21, 22, 23, 24),
    "Lemma": (4, 12, 13, 15),
    "Theorem": (6, 9, 10, 17),
    "Corollary": (11, 14, 16, 18),
}
STATEMENTS = {f"{kind} {number}" for kind, numbers in KINDS.items() for number in numbers}
FIGURES = {f"Figure {number}" for number in range(1, 27)}
ITEM = re.compile(
    r"(?:(?:Assumption|Proposition|Lemma|Theorem|Corollary|Figure|Equation|Section|GB|Ours) \d+|Appendix [ACD])"
    r"(?: \([^()]+\))?"
)
SLUG = re.compile(r"\d\d-[a-z0-9-]+")
LINK = re.compile(r"\[[^\]]+\]\((?P<slug>\d\d-[a-z0-9-]+)(?:\.ipynb)?\)")
ANCHOR = re.compile(r'<a href="(?P<slug>[^".]+)\.html#check-(?P<id>[a-z0-9-]+)"><code>(?P<shown>[a-z0-9-]+)</code></a>')
CALL = re.compile(r"""claims\.check\(\s*(?:id\s*=\s*)?["']([^"']*)["']""")
MAGIC = re.compile(r"^(\s*)(?:%|!)(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Row:
    """One claim: chapters are (slug, is it a link?), checks are (slug of the page, id)."""

    item: str
    claim: str
    chapters: tuple[tuple[str, bool], ...]
    verdict: str
    checks: tuple[tuple[str, str], ...]
    note: str


def read_ledger(book: Path) -> list[Row]:
    """Read the rows of every table of the ledger that has the six columns."""
    rows, inside = [], False
    for number, line in enumerate((book / "ledger.md").read_text(encoding="utf-8").splitlines(), 1):
        if not line.startswith("|"):
            inside = False
            continue
        cells = tuple(cell.strip() for cell in line.strip().strip("|").split("|"))
        if cells == COLUMNS:
            inside = True
        elif inside and not set("".join(cells)) <= set("-: "):
            assert len(cells) == len(COLUMNS), f"ledger.md, line {number}: {len(cells)} cells in place of 6"
            rows.append(_row(number, *cells))
    return rows


def _row(number: int, item: str, claim: str, where: str, verdict: str, checks: str, note: str) -> Row:
    chapters = []
    for name in where.split(","):
        link = LINK.fullmatch(name.strip())
        assert link or SLUG.fullmatch(name.strip()), f"ledger.md, line {number}: {name!r} names no chapter"
        chapters.append((link["slug"], True) if link else (name.strip(), False))
    anchors = list(ANCHOR.finditer(checks))
    rest = ANCHOR.sub("", checks).strip()
    assert not rest, f"ledger.md, line {number}: {rest!r} is no link to a check"
    assert all(a["id"] == a["shown"] for a in anchors), f"ledger.md, line {number}: a link shows another id"
    return Row(item, claim, tuple(chapters), verdict, tuple((a["slug"], a["id"]) for a in anchors), note)


def chapters(book: Path) -> list[Path]:
    """Return the notebooks of the book in reading order."""
    return sorted(book.glob("[0-9][0-9]-*.ipynb"))


def sources(notebook: Path) -> list[tuple[str, set[str]]]:
    """Return source and tags of every code cell that Python can run, with IPython's magic lines taken out."""
    cells = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    return [
        (MAGIC.sub(r"\1pass  # \2", cell.source), set(cell.metadata.get("tags", [])))
        for cell in cells
        if not cell.source.lstrip().startswith("%%")
    ]


def written_checks(book: Path) -> Counter[tuple[str, str]]:
    """Count (slug, id) of the calls of claims.check in the notebooks."""
    return Counter(
        (path.stem, id) for path in chapters(book) for source, _ in sources(path) for id in CALL.findall(source)
    )


def incomplete(rows: list[Row]) -> list[str]:
    """Return what is wrong with the items: missing ones, unknown ones, duplicates, gaps."""
    count = Counter(row.item for row in rows)
    heads = {item.split(" (")[0] for item in count}
    problems = [f"{item} stands {n} times" for item, n in count.items() if n > 1]
    parted = {item.split(" (")[0] for item in count if " (" in item}
    problems += [f"{item} has a row of its own and rows for its parts" for item in parted & count.keys()]
    problems += [f"{item!r} is no item of the paper" for item in count if not ITEM.fullmatch(item)]
    known = [head for head in heads if head.split()[0] in {*KINDS, "Figure"}]
    problems += [f"{head} is not in the paper under this name" for head in known if head not in STATEMENTS | FIGURES]
    problems += [f"{item} is missing" for item in STATEMENTS | FIGURES if item not in heads]
    glorot = sorted(int(head.split()[1]) for head in heads if head.startswith("GB "))
    if glorot != list(range(1, len(glorot) + 1)) or not glorot:
        problems.append(f"the claims GB do not run from 1 without a gap: {glorot}")
    return sorted(problems)


def inconsistent(rows: list[Row], book: Path) -> list[str]:
    """Return what is wrong with verdicts, links and checks, given the notebooks."""
    existing, written = {path.stem for path in chapters(book)}, written_checks(book)
    named = {check for row in rows for check in row.checks}
    problems = [f"{slug} writes the check {id!r} {n} times" for (slug, id), n in written.items() if n > 1]
    ids = Counter(id for _, id in written)
    problems += [f"the check {id!r} stands in {n} chapters" for id, n in ids.items() if n > 1]
    problems += [f"the check {id!r} of {slug} is not in the ledger" for slug, id in written if (slug, id) not in named]
    for row in rows:
        allowed = FIGURE_VERDICTS if row.item.startswith("Figure") else VERDICTS - FIGURE_VERDICTS | {NOT_RUN}
        if row.verdict not in allowed:
            problems.append(f"{row.item}: {row.verdict!r} is not among its verdicts")
        if (row.verdict == NOT_RUN) != (not row.checks):
            problems.append(f"{row.item}: the verdict {row.verdict!r} with {len(row.checks)} checks")
        if not row.claim or row.claim.count("$") % 2 or row.note.count("$") % 2:
            problems.append(f"{row.item}: empty claim, or a $ without its partner")
        for slug, linked in row.chapters:
            if linked != (slug in existing):
                problems.append(f"{row.item}: {slug} is {'linked, but missing' if linked else 'there, but not linked'}")
        for slug, id in row.checks:
            if slug not in {chapter for chapter, _ in row.chapters}:
                problems.append(f"{row.item}: the check {id!r} links to {slug}, which the row does not name")
            if (slug, id) not in written:
                problems.append(f"{row.item}: {slug} has no check {id!r}")
    return problems


def run_chapter(notebook: Path) -> None:
    """Run the code cells of a chapter in this process, in its own folder, at the scale of the tests."""
    namespace = {"__name__": "__main__", "display": display, "get_ipython": lambda: None}
    dtype = torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patch, matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("default")  # pyproject turns warnings into errors; Agg warns at plt.show()
        patch.setenv("VCLIB_SCALE", "smoke")
        patch.chdir(notebook.parent)
        matplotlib.use("Agg", force=True)
        try:
            for number, (source, tags) in enumerate(sources(notebook), 1):
                with contextlib.suppress(Exception) if "raises-exception" in tags else contextlib.nullcontext():
                    exec(compile(source, f"{notebook.name}, code cell {number}", "exec"), namespace)
        finally:
            pyplot.close("all")
            torch.set_default_dtype(dtype)


def try_checks(notebook: Path, claims: ModuleType) -> dict[str, bool]:
    """Run a chapter once; for each check say whether it fails when its control takes the place of the measurement.

    A check that fails in its own right stops the chapter, as in the book.
    """
    genuine, can_fail = claims.check, {}

    def check(*args: Any, **kwargs: Any) -> Any:
        result = genuine(*args, **kwargs)
        name = args[0] if args else kwargs["id"]
        try:
            genuine(*args, **{**kwargs, "measured": kwargs["control"]})
        except claims.ClaimFailed:
            can_fail[name] = can_fail.get(name, True)
        else:
            can_fail[name] = False
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "check", check)
        run_chapter(notebook)
    return can_fail


# --- the book -----------------------------------------------------------------------------------------------------


def test_ledger_is_complete():
    assert incomplete(read_ledger(BOOK)) == []


def test_ledger_agrees_with_the_notebooks():
    assert inconsistent(read_ledger(BOOK), BOOK) == []


@pytest.mark.parametrize("notebook", chapters(BOOK), ids=lambda path: path.stem)
def test_every_check_can_fail(notebook: Path):
    from vclib import claims

    assert try_checks(notebook, claims) == {id: True for slug, id in written_checks(BOOK) if slug == notebook.stem}


@pytest.mark.parametrize("notebook", chapters(BOOK), ids=lambda path: path.stem)
def test_stubs_are_not_attempted_and_solutions_pass(notebook: Path, monkeypatch):
    from vclib import exercises

    genuine, states = exercises.Exercise.feedback, []

    def feedback(self, answer):
        verdict = genuine(self, answer)
        states.append((self.name, "stub" if answer is ... else "answer", verdict.state))
        return verdict

    monkeypatch.setattr(exercises.Exercise, "feedback", feedback)
    run_chapter(notebook)
    names = {name for name, _, _ in states}
    assert len(names) >= 3
    assert sorted(states) == sorted(
        row for name in names for row in ((name, "stub", "not-attempted"), (name, "answer", "correct"))
    )


def scaled(genuine, factor):
    return lambda *args, **kwargs: factor * genuine(*args, **kwargs)


MUTANTS = {  # chapter, module and function of vclib, factor on its result, the check that must notice
    "Erlang median off by 10 %": ("04-chain-moments", "chain.erlang_median", 1.1, "prop-3-fat-tails"),
    "Erlang law off by 1 %": ("05-chain-median", "chain.erlang_cdf", 1.01, "lemma-4-density"),
    "median off by 2 %": ("05-chain-median", "chain.median_forward", 1.02, "prop-5-median"),
    "Erlang median nearer to L": ("05-chain-median", "chain._erlang_median_excess", 0.9, "prop-5-choi-bounds"),
    "weights off by 2 %": ("02-setting", "initialization.WeightLaw.sample", 1.02, "assumption-1-laws"),
    "autodiff gradient off by 1e-9": ("02-setting", "curvature.gradient_norms", 1 + 1e-9, "eq-1-backward"),
    "weights off by 10 %": ("03-glorot-bengio", "initialization.WeightLaw.sample", 1.1, "crack-promise"),
    "chain gradient off by 1e-9": ("06-chain-curvature", "chain.gradient", 1 + 1e-9, "chain-gradient"),
    "chain Hessian off by 1e-9": ("06-chain-curvature", "chain.hessian", 1 + 1e-9, "chain-hessian"),
    "flow time off by 1e-6": ("07-chain-escape", "escape.gradient_flow_time", 1 + 1e-6, "flow-time"),
    "RMSprop flow off by 1 %": ("07-chain-escape", "escape.rmsprop_flow_time", 1.01, "rmsprop-flow-time"),
    "gradient of the chain doubled": ("08-chain-noise", "chain.gradient", 2, "c2-gradient-size"),
    "Q off by 1 %": ("09-mlp-moments", "moments.recursion_matrix", 1.01, "q-characteristic"),
    "kurtosis off by 10 %": ("09-mlp-moments", "moments._kurtosis", 1.1, "lemma-15-pairing"),
    "median of the norm halved": ("10-mlp-median", "normlaw.median", 0.5, "mallows-inequality"),
    "sampled norms doubled": ("10-mlp-median", "normlaw.sample", 2, "exact-law-samples"),
    "one network in ten more dies": ("10-mlp-median", "normlaw.death_probability", 1.1, "death-probability"),
    "layers off by 2 %": ("11-mlp-curvature", "initialization.WeightLaw.sample", 1.02, "prop-20-factor"),
    "Hessian off by 1e-9": ("11-mlp-curvature", "curvature.hessian", 1 + 1e-9, "engine-equals-autodiff"),
    "products off by 1e-9": (
        "11-mlp-curvature",
        "curvature.hessian_vector_products",
        1 + 1e-9,
        "engine-equals-autodiff",
    ),
    "bounds of rows doubled": ("11-mlp-curvature", "curvature.hessian", 2, "corollary-11"),
    "eigenvalues of the other sign": ("11-mlp-curvature", "curvature.extreme_eigenvalues", -1, "born-on-a-saddle"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_broken_formula_stops_its_chapter(mutant, monkeypatch):
    chapter, name, factor, id = MUTANTS[mutant]
    genuine = pkgutil.resolve_name(f"vclib.{name}")
    monkeypatch.setattr(f"vclib.{name}", scaled(genuine, factor))
    with pytest.raises(AssertionError, match=id):  # a failed claim is an AssertionError
        run_chapter(BOOK / f"{chapter}.ipynb")


def with_steps_of_gradient_descent(rmsprop):
    return lambda **options: lambda gradient, memory, k: (rmsprop(**options)(gradient, memory, k), gradient)[1]


@pytest.mark.parametrize(
    ("chapter", "id"),
    [
        ("07-chain-escape", "rmsprop-at-most"),
        ("08-chain-noise", "noise-still-slower"),
        ("17-adaptive-methods", "scale-invisible"),
    ],
)
def test_an_rmsprop_that_is_gradient_descent_stops_its_chapters(chapter, id, monkeypatch):
    from vclib import escape

    monkeypatch.setattr(escape, "rmsprop", with_steps_of_gradient_descent(escape.rmsprop))
    with pytest.raises(AssertionError, match=id):
        run_chapter(BOOK / f"{chapter}.ipynb")


def test_half_a_step_stops_the_chapter_on_training(monkeypatch):
    from vclib.training import SGD

    genuine = SGD.update
    monkeypatch.setattr(SGD, "update", lambda self, w, g, *rest: genuine(self, w, g / 2, *rest))
    with pytest.raises(AssertionError, match="ensemble-is-runs"):
        run_chapter(BOOK / "12-mlp-training.ipynb")


def test_swapped_block_means_stop_the_introduction(monkeypatch):
    from vclib import claims, curvature

    def swapped(state, columns, memory):
        own, off, *errors = genuine(state, columns, memory)
        return off, own, *errors

    genuine = curvature._column_means
    monkeypatch.setattr(curvature, "_column_means", swapped)
    with pytest.raises(claims.ClaimFailed, match="columns-unbiased"):
        run_chapter(BOOK / "01-introduction.ipynb")


# --- the tests themselves, on stand-ins ---------------------------------------------------------------------------

STAND_IN = """
class ClaimFailed(AssertionError): pass
def check(id, statement, *, measured, expected, relation="==", tolerance=None, standard_error=None, control, control_label):
    if abs(measured - expected) > tolerance: raise ClaimFailed(id)
"""  # noqa: E501
GOOD = "claims.check(\n    'good', 'two', measured=2, expected=2, tolerance=0, control=3, control_label='three')"
EMPTY = "claims.check('empty', 'two', measured=2, expected=2, tolerance=9, control=3, control_label='three')"
WRONG = "claims.check('wrong', 'two', measured=5, expected=2, tolerance=0, control=3, control_label='three')"


@pytest.fixture
def claims(tmp_path, monkeypatch):
    (tmp_path / "stand_in_claims.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__("stand_in_claims")
    sys.modules.pop("stand_in_claims")


def write_chapter(folder: Path, name: str, *cells: str, tags: tuple[str, ...] = ()) -> Path:
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_markdown_cell("# `claims.check('not-code')`")]
    notebook.cells += [nbformat.v4.new_code_cell(cell, metadata={"tags": list(tags)}) for cell in cells]
    nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


def write_ledger(folder: Path, *rows: str) -> Path:
    header = f"| {' | '.join(COLUMNS)} |\n|{'---|' * 6}\n"
    verdicts = "| Word | Meaning |\n|---|---|\n| `holds` | x |\n\n"
    (folder / "ledger.md").write_text(verdicts + header + "\n".join(rows) + "\n", encoding="utf-8")
    return folder


def anchor(slug: str, id: str) -> str:
    return f'<a href="{slug}.html#check-{id}"><code>{id}</code></a>'


def test_chapter_runs_once_and_tries_every_check(tmp_path, claims, capsys):
    setup = "%matplotlib inline\nimport os, stand_in_claims as claims\nif True:\n    !pip install x\nruns = 0"
    probe = "runs += 1\nassert runs == 1 and os.environ['VCLIB_SCALE'] == 'smoke'\nopen('here').close()"
    plot = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\ndisplay('seen')"
    (tmp_path / "here").touch()
    folder = Path.cwd()
    path = write_chapter(tmp_path, "01-x", setup, "%%bash\nexit 1", probe, GOOD, plot)
    genuine = claims.check
    assert try_checks(path, claims) == {"good": True}
    assert claims.check is genuine
    assert Path.cwd() == folder
    assert "seen" in capsys.readouterr().out


def test_check_that_cannot_fail_is_found(tmp_path, claims):
    path = write_chapter(tmp_path, "01-x", "import stand_in_claims as claims", GOOD, EMPTY)
    assert try_checks(path, claims) == {"good": True, "empty": False}


def test_check_that_fails_stops_the_chapter(tmp_path, claims):
    path = write_chapter(tmp_path, "01-x", "import stand_in_claims as claims", WRONG)
    with pytest.raises(claims.ClaimFailed, match="wrong"):
        try_checks(path, claims)


def test_cells_that_should_raise_may_raise(tmp_path, claims):
    assert try_checks(write_chapter(tmp_path, "01-x", "1 / 0", tags=("raises-exception",)), claims) == {}
    with pytest.raises(ZeroDivisionError):
        try_checks(write_chapter(tmp_path, "02-x", "1 / 0"), claims)


def test_the_book_s_own_check_is_tried_with_arrays(tmp_path):
    from vclib import claims

    cell = (
        "import numpy as np\nfrom vclib import claims\nclaims.check('arrays', 'ones', measured=np.ones(3),\n"
        "             expected=np.ones(3), tolerance=1e-9, control=np.array([1, 1, 2.0]), control_label='a two')"
    )
    assert try_checks(write_chapter(tmp_path, "01-x", cell), claims) == {"arrays": True}


def test_agreement_of_ledger_and_notebooks(tmp_path):
    write_chapter(tmp_path, "01-x", GOOD)
    good = f"| Lemma 4 | $x$. | [Chapter 1](01-x.ipynb) | holds | {anchor('01-x', 'good')} | |"
    later = "| Figure 2 | It sinks. | 06-y, 07-z | not run | | |"
    assert inconsistent(read_ledger(write_ledger(tmp_path, good, later)), tmp_path) == []


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("| Lemma 4 | x | [C](01-x) | holds | | |", "with 0 checks"),
        (f"| Lemma 4 | x | [C](01-x) | not run | {anchor('01-x', 'good')} | |", "with 1 checks"),
        (f"| Lemma 4 | x | [C](01-x) | true | {anchor('01-x', 'good')} | |", "not among its verdicts"),
        (f"| Figure 4 | x | [C](01-x) | holds | {anchor('01-x', 'good')} | |", "not among its verdicts"),
        (f"| Lemma 4 | x | [C](01-x) | holds | {anchor('01-x', 'bad')} | |", "has no check 'bad'"),
        (f"| Lemma 4 | x | 02-y | holds | {anchor('01-x', 'good')} | |", "which the row does not name"),
        ("| Lemma 4 | x | [C](02-y) | not run | | |", "linked, but missing"),
        ("| Lemma 4 | x | 01-x | not run | | |", "there, but not linked"),
        ("| Lemma 4 | x | 02-y | not run | | |", "is not in the ledger"),
        ("| Lemma 4 | $x | 02-y | not run | | |", "without its partner"),
    ],
)
def test_disagreement_is_found(tmp_path, row, problem):
    write_chapter(tmp_path, "01-x", GOOD)
    assert any(problem in found for found in inconsistent(read_ledger(write_ledger(tmp_path, row)), tmp_path))


def test_duplicate_checks_are_found(tmp_path):
    for name in ("01-x", "02-y"):
        write_chapter(tmp_path, name, GOOD, GOOD)
    problems = inconsistent([], tmp_path)
    assert "the check 'good' stands in 2 chapters" in problems
    assert "01-x writes the check 'good' 2 times" in problems


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("| Lemma 4 | x | 02-y | holds | good | |", "no link to a check"),
        ("| Lemma 4 | x | somewhere | holds | | |", "names no chapter"),
        ("| Lemma 4 | $|x|$ | 02-y | holds | | |", "8 cells"),
        ('| Lemma 4 | x | 02-y | holds | <a href="02-y.html#check-a"><code>b</code></a> | |', "another id"),
    ],
)
def test_malformed_rows_are_named(tmp_path, row, problem):
    with pytest.raises(AssertionError, match=problem):
        read_ledger(write_ledger(tmp_path, row))


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("| Lemma 4 |", "| Lemma 25 |", "Lemma 4 is missing"),
        ("| Lemma 4 |", "| Theorem 4 |", "Theorem 4 is not in the paper"),
        ("| Lemma 4 |", "| Lemma 13 |", "Lemma 13 stands 2 times"),
        ("| Lemma 4 |", "| Fact 4 |", "'Fact 4' is no item"),
        ("| Figure 26 |", "| Figure 27 |", "Figure 26 is missing"),
        ("| Lemma 12 (1) |", "| Lemma 12 |", "and rows for its parts"),
        ("| GB 7 |", "| GB 77 |", "without a gap"),
    ],
)
def test_incomplete_ledgers_are_found(tmp_path, old, new, problem):
    text = (BOOK / "ledger.md").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "ledger.md").write_text(text.replace(old, new), encoding="utf-8")
    assert any(problem in found for found in incomplete(read_ledger(tmp_path)))
