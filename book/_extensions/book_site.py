"""What makes the built site ours: one source for the repository's address, and no request to anyone else."""

import importlib.util
import re
import shutil
import tomllib
from pathlib import Path

from fontTools import subset
from numpy.typing import ArrayLike
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError
from sphinx.util.typing import stringify_annotation

ROOT = Path(__file__).resolve().parents[2]
ARRAY_LIKE = stringify_annotation(ArrayLike, "smart")
COLAB = "https://colab.research.google.com"
# Icons that the theme's templates name. Its stylesheet names the others that it needs by their codes.
ICONS = """angle-left angle-right arrow-up bars chevron-down circle-half-stroke code download expand file file-pdf list
magnifying-glass moon outdent rocket sun xmark github gitlab"""
ICON_RULE = re.compile(r'((?:\.fa-[\w-]+:before,?)+)\{content:"[^"]*"\}')
ICON_CODE = re.compile(r"\\([ef][0-9a-f]{3})\b")  # some rules have the code, others the character itself
FIGURE_ROW = re.compile(r"^\| (\d+) \| (\S+)#(\S+) \| \|$", re.MULTILINE)
LEDGER_ROW = r"^\| Figure {0}(?: \([^()]*\))? \| (.*?) \| .*? \| (.*?) \| .*? \| (.*) \|$"
FIGURE_IMAGE = re.compile(r'<img alt="Our Figure (\d+)" data-of="([^"#]+)#([^"]+)"[^>]*>')
ICON_FILE = re.compile(r'url\([^)]*/(fa-solid-900)\.woff2\) format\("woff2"\),url\([^)]*\.ttf\) format\("truetype"\)')


def repository() -> str:
    """Return the repository's address from pyproject.toml, the one place that has it, or "" if it has none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project.get("urls", {}).get("Repository", "").rstrip("/")


def configure(app: Sphinx, config: Config) -> None:
    """Show Colab, download and repository buttons only when there is a repository to point at."""
    url = repository()
    on_github = url.startswith("https://github.com/")
    config.html_theme_options.update(
        repository_url=url,
        repository_branch="main",
        path_to_docs="book",
        use_repository_button=bool(url),
        use_download_button=bool(url),
        launch_buttons={"colab_url": COLAB} if on_github else {},
    )
    config.html_copy_source = bool(url)
    config.numfig = False  # figures keep the paper's numbers; a second count would confuse
    config.templates_path.insert(0, str(ROOT / "book" / "_templates"))


def copy_mathjax(app: Sphinx) -> None:
    """Copy MathJax from the package sphinx-mathjax-offline: the TeX reader, the fonts, and what they load on demand."""
    spec = importlib.util.find_spec("sphinx-mathjax-offline")  # its folder has a hyphen, so it cannot be imported
    if spec is None:
        raise ExtensionError("The package sphinx-mathjax-offline is missing; `make book` installs it.")
    source, target = Path(spec.origin).parent / "static" / "mathjax", Path(app.outdir) / "_static" / "mathjax"
    for part in ("tex-chtml.js", "a11y", "input/tex/extensions", "output/chtml/fonts/woff-v2"):
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, dirs_exist_ok=True)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / part, target / part)


def trim_icons(app: Sphinx, exception: Exception | None) -> None:
    """Cut Font Awesome down to the icons in use: 250 kB less on every page (and 1.5 MB: see _templates/static)."""
    if exception:
        return
    static = Path(app.outdir) / "_static"
    sheet, fonts = static / "styles" / "pydata-sphinx-theme.css", static / "vendor" / "fontawesome" / "webfonts"
    used = {f".fa-{name}:before" for name in ICONS.split()}
    text = sheet.read_text(encoding="utf-8")
    text = ICON_RULE.sub(lambda rule: rule[0] if used & set(rule[1].split(",")) else "", text)
    text, count = ICON_FILE.subn(r'url(../vendor/fontawesome/webfonts/\1.woff) format("woff")', text)
    if count:  # not if this output was trimmed before
        options = subset.Options(flavor="woff")
        font = subset.load_font(fonts / "fa-solid-900.ttf", options)
        every = text + "".join(path.read_text(encoding="utf-8") for path in static.rglob("*.css") if path != sheet)
        cutter = subset.Subsetter(options)
        cutter.populate(
            unicodes=[int(code, 16) for code in ICON_CODE.findall(every)],
            text="".join(re.findall("[\ue000-\uf8ff]", every)),
        )
        cutter.subset(font)
        subset.save_font(font, fonts / "fa-solid-900.woff", options)
        sheet.write_text(text, encoding="utf-8")
    for unused in (*static.rglob("*.map"), *static.rglob("fontawesome.js*"), *fonts.glob("fa-solid-900.woff2")):
        unused.unlink(missing_ok=True)


def fill_figure_index(app: Sphinx, page: str, source: list[str]) -> None:
    """Complete the rows of the index of figures with the words of the ledger, and leave room for the pictures."""
    if page != "figures":
        return
    ledger = (ROOT / "book" / "ledger.md").read_text(encoding="utf-8")

    def row(match: re.Match) -> str:
        number, chapter, anchor = match.groups()
        rows = re.findall(LEDGER_ROW.format(number), ledger, re.MULTILINE)
        words = "<br>".join(f"{shows} **{verdict.capitalize()}.** {note}" for shows, verdict, note in rows)
        picture = f'<img alt="Our Figure {number}" data-of="{chapter}#{anchor}">'
        ours = f'<a href="{chapter}.html#{anchor}">{picture}</a>'
        return f"| {number} | {ours} | {words} |"

    source[0] = FIGURE_ROW.sub(row, source[0])


def place_pictures(app: Sphinx, exception: Exception | None) -> None:
    """Put each chapter's picture into the index of figures, once all chapters are written."""
    index = Path(app.outdir) / "figures.html"
    if exception or not index.is_file():
        return

    def picture(match: re.Match) -> str:
        number, chapter, anchor = match.groups()
        page = Path(app.outdir) / f"{chapter}.html"
        text = page.read_text(encoding="utf-8") if page.is_file() else ""
        found = re.search(rf'<figure[^>]* id="{anchor}">\s*<img[^>]* src="([^"]+)"', text)
        if found is None:
            raise ExtensionError(f"The index of figures names {chapter}#{anchor}, which has no picture.")
        return f'<img alt="Our Figure {number}" loading="lazy" src="{found[1]}">'

    index.write_text(FIGURE_IMAGE.sub(picture, index.read_text(encoding="utf-8")), encoding="utf-8")


def name_array_like(app: Sphinx, *_: object) -> None:
    """Write ``array_like`` in the API for numpy's ArrayLike, which would otherwise be spelt out over four lines."""
    for hints in app.env.temp_data.get("annotations", {}).values():
        hints.update({name: hint.replace(ARRAY_LIKE, "array_like") for name, hint in hints.items()})


def mend_citation_list(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    """Take docutils' role="list" off the bibliography: its children are entries, not list items, and axe objects."""
    if "body" in context:
        context["body"] = context["body"].replace('role="list" class="citation-list"', 'class="citation-list"')


def launch_notebooks_only(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    """Take the Colab button off pages whose source is no .ipynb file: Colab opens nothing else."""
    if context.get("page_source_suffix") != ".ipynb":
        buttons = context.get("header_buttons", [])
        context["header_buttons"] = [button for button in buttons if button.get("label") != "launch-buttons"]


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the above to Sphinx."""
    app.connect("config-inited", configure, priority=900)
    app.connect("builder-inited", copy_mathjax)
    app.connect("source-read", fill_figure_index)
    app.connect("build-finished", trim_icons)
    app.connect("build-finished", place_pictures)
    app.connect("autodoc-process-signature", name_array_like, priority=600)  # after autodoc has noted the hints
    app.connect("html-page-context", launch_notebooks_only, priority=600)  # after the theme has made its buttons
    app.connect("html-page-context", mend_citation_list)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
