"""The built pages in a real browser: what a reader sees, on a laptop and on a phone, in light and in dark.

`make site-test` builds the book and runs this; there, a missing browser or book is a failure. Elsewhere it is a skip.
"""

import functools
import http.server
import os
import re
import shutil
import threading
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"
PAGES = sorted(path.name for path in SITE.glob("*.html"))
GENERATED = {"genindex.html", "search.html", "py-modindex.html", "prf-prf.html"}  # lists that Sphinx makes by itself
WITH_EXPLORER = [page for page in PAGES if re.match(r"\d\d-", page)]
MOST_BYTES = 1_500_000
GALLERY = {"figures.html": 3_000_000}  # all figures of the book, which load as the reader scrolls
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
COLAB = "https://colab.research.google.com/"
SERVICES = re.compile(r"colab\.|mybinder|executablebooks|jupyterbook\.org")
# Known findings of the theme, outside the article: `region` (parts of its frame lie in no landmark) and
# `label-content-name-mismatch` (its search button). Axe therefore looks at the article only.
ARTICLE = "article.bd-article"
WIDEST = """() => [...document.querySelectorAll("article.bd-article *")]
    .filter(element => {
        while ((element = element.parentElement).tagName !== "MAIN")
            if (getComputedStyle(element).overflowX !== "visible") return false;
        return true;
    })
    .sort((a, b) => b.getBoundingClientRect().right - a.getBoundingClientRect().right)
    .slice(0, 3).map(element => element.outerHTML.slice(0, 150))"""


def unavailable() -> str:
    """Return why the pages cannot be tested here, or ""."""
    if not any(map(shutil.which, BROWSERS)):
        return "no Chromium on this machine (Debian's package is `chromium`), so the built pages are not tested"
    if "index.html" not in PAGES:
        return "there is no built book in _build/html, so its pages are not tested; run `make book` first"
    sources = [
        p
        for folder in ("book", "vclib")
        for p in (ROOT / folder).rglob("*")
        if p.suffix in {".ipynb", ".md", ".css", ".py", ".js", ".bib"}
    ]
    if max(p.stat().st_mtime for p in sources) > (SITE / "index.html").stat().st_mtime:
        return "the built book is older than its sources, so its pages are not tested; run `make book` first"
    return ""


@pytest.fixture(scope="module", autouse=True)
def _needed() -> None:
    reason = unavailable()
    if reason and os.environ.get("VCLIB_SITE_REQUIRED") == "1":
        pytest.fail(f"VCLIB_SITE_REQUIRED is set, but {reason}.")
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def address(_needed):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, request, client_address):
            pass  # the browser closed a connection that it no longer needs

    server = Server(("127.0.0.1", 0), functools.partial(Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser(_needed):
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, BROWSERS)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


class Visit:
    """A page that is open, with everything that it asked for and everything that it complained about."""

    def __init__(self, browser, address, name, width=1280, theme="light"):
        self.name, self.address, self.trouble, self.weight = name, address, [], {}
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
        self.page = self.context.new_page()
        self.page.on("request", self._request)
        self.page.on("response", self._response)
        self.page.on("requestfailed", lambda r: self.trouble.append(f"request failed: {r.url[:200]}"))
        self.page.on("pageerror", lambda error: self.trouble.append(f"script error: {error}"))
        self.page.on(
            "console", lambda m: self.trouble.append(f"console: {m.text}") if m.type in ("error", "warning") else None
        )
        self.page.goto(address + name, wait_until="load")
        self.page.evaluate(  # MathJax says when it is done; without formulas there is none
            "async () => { if (document.querySelector('script[src*=\"tex-chtml\"]')) await MathJax.startup.promise; }"
        )
        self.page.wait_for_function("!document.querySelector('.vc-explorer:not([data-ready])')")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()

    def live(self, values):
        """What the function behind the one live explorer of the page returns."""
        return self.page.evaluate("values => Object.values(window.vcLive)[0](values)", values)

    def _request(self, request):
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.trouble.append(f"request to another site: {request.url}")

    def _response(self, response):
        path = urlsplit(response.url).path
        if response.status >= 400:
            self.trouble.append(f"status {response.status}: {response.url}")
        elif response.url.startswith(self.address) and "/mathjax/" not in path:
            file = SITE / (unquote(path).lstrip("/") or "index.html")
            self.weight[path] = file.stat().st_size if file.is_file() else 0  # the server does not compress


def look(page, width, theme):
    """Return what is wrong at a glance: another theme than asked for, or a page that is too wide."""
    shown, wide = page.evaluate("[document.documentElement.dataset.theme, document.documentElement.scrollWidth]")
    if shown != theme:
        yield f"the theme shown is {shown!r}"
    if wide > width:
        yield f"the page is {wide} px wide; the widest that does not scroll: {page.evaluate(WIDEST)}"


@pytest.mark.parametrize("name", PAGES)
def test_page(browser, address, name):
    """Nothing fails, nothing goes abroad, nothing overflows, and axe finds nothing serious, in all four views."""
    from axe_playwright_python.sync_playwright import Axe

    problems = []
    for width, theme in ((1280, "light"), (390, "dark")):
        other = "dark" if theme == "light" else "light"
        with Visit(browser, address, name, width, theme) as visit:
            where = f"{name} at {width} px, {theme}"
            problems += [f"{where}: {problem}" for problem in look(visit.page, width, theme)]
            # Contrast depends on the theme, overflow on the width: one run of axe for each theme and each width.
            if name not in GENERATED:
                for finding in Axe().run(visit.page, ARTICLE, {"preload": False}).response["violations"]:
                    if finding["impact"] in ("serious", "critical"):
                        nodes = "; ".join(node["html"][:150] for node in finding["nodes"][:3])
                        problems.append(f"{where}: axe {finding['id']} ({finding['impact']}): {nodes}")
            weight = sum(visit.weight.values())
            if weight > GALLERY.get(name, MOST_BYTES):
                worst = sorted(visit.weight.items(), key=lambda item: -item[1])[:3]
                problems.append(f"{where}: weighs {weight:,} bytes, most of it {worst}")
            visit.page.emulate_media(color_scheme=other)  # the reader's machine switches at dusk
            visit.page.wait_for_timeout(100)
            visit.page.evaluate("new Promise(requestAnimationFrame)")
            problems += [f"{name} at {width} px, {other}: {problem}" for problem in look(visit.page, width, other)]
            problems += [f"{where}: {trouble}" for trouble in visit.trouble]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("name", [page for page in PAGES if page not in GENERATED])
def test_figures_and_mathematics(browser, address, name):
    """Every picture has its own alternative text, every formula is typeset, every link leads somewhere."""
    with Visit(browser, address, name) as visit:
        page = visit.page
        page.eval_on_selector_all("img[loading=lazy]", "all => all.forEach(image => { image.loading = 'eager'; })")
        page.wait_for_load_state("networkidle")
        texts = page.eval_on_selector_all(f"{ARTICLE} img", "all => all.map(image => image.alt)")
        broken = page.eval_on_selector_all(
            f"{ARTICLE} img", "all => all.filter(image => !image.complete || !image.naturalWidth).map(i => i.alt)"
        )
        raw = page.eval_on_selector_all(
            f"{ARTICLE} .math", "all => all.filter(f => !f.querySelector('mjx-container')).map(f => f.textContent)"
        )
        errors = page.eval_on_selector_all(f"{ARTICLE} mjx-merror", "all => all.map(e => e.textContent)")
        left = page.evaluate(
            """selector => {
              const copy = document.querySelector(selector).cloneNode(true);
              copy.querySelectorAll('pre, code, script, .math, mjx-container').forEach(e => e.remove());
              return copy.textContent.match(/\\$[^$\\n]{1,60}\\$|\\\\\\(.{1,60}\\\\\\)/g) || [];
            }""",
            ARTICLE,
        )
        typeset = page.locator("mjx-container").count()
    assert not broken, f"pictures that do not load: {broken}"
    nameless = [text for text in texts if len(text.strip()) < 10 or re.search(r"\.(svg|png|jpe?g)$|^_images/", text)]
    assert not nameless, f"pictures whose alternative text is empty, too short or a file name: {nameless}"
    shared = [text for text, count in Counter(texts).items() if count > 1]
    assert not shared, f"pictures that share an alternative text: {shared}"
    assert not raw, f"formulas that are not typeset: {raw[:5]}"
    assert not errors, f"formulas with errors: {errors}"
    assert not left, f"dollar signs that never became formulas: {left[:5]}"
    source = ROOT / "book" / f"{Path(name).stem}.ipynb"
    source = source if source.exists() else source.with_suffix(".md")
    if source.exists() and re.search(r"(?<![\\`])\$[^$\n`]+\$", source.read_text(encoding="utf-8")):
        assert typeset, "the source has formulas, the page has none"


def test_links():
    """Internal links and anchors resolve; without a repository nothing points at Colab or at anyone's repository."""
    import tomllib

    from bs4 import BeautifulSoup

    soups = {name: BeautifulSoup((SITE / name).read_text(encoding="utf-8"), "html.parser") for name in PAGES}
    anchors = {name: {tag["id"] for tag in soup.find_all(id=True)} for name, soup in soups.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    repository = project.get("urls", {}).get("Repository", "")
    dead, foreign = [], []
    for name, soup in soups.items():
        for link in soup.find_all("a", href=True):
            target = urlsplit(urljoin(name, link["href"]))
            here = f"{name}: {link['href']}"
            if target.scheme in ("http", "https"):
                ours = bool(repository) and link["href"].startswith((repository, COLAB))
                cited = link.find_parent("article") is not None and not SERVICES.search(target.netloc)
                if not (ours or cited) or (link["href"].startswith(COLAB) and not target.path.endswith(".ipynb")):
                    foreign.append(here)
            elif not target.scheme:
                path = unquote(target.path) or name
                anchor = unquote(target.fragment)
                if not (SITE / path).is_file() or (anchor and path in anchors and anchor not in anchors[path]):
                    dead.append(here)
    assert not dead, f"links that lead nowhere: {sorted(set(dead))}"
    assert not foreign, f"links to other sites around the text: {sorted(set(foreign))}"


def test_no_page_names_a_folder_of_this_machine():
    assert not [name for name in PAGES if str(ROOT) in (SITE / name).read_text(encoding="utf-8")]


def test_examples_of_the_api_are_examples():
    """An example or a source that slips into a list of parameters is read as parameters."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup((SITE / "api.html").read_text(encoding="utf-8"), "html.parser")
    lost = [text for field in soup.select("dl.field-list") if ">>>" in (text := field.get_text()) or "Source:" in text]
    assert not lost, f"docstrings whose last section swallows what follows: {lost}"
    assert len(soup.select(".doctest")) > 20
    assert "``" not in soup.get_text(), "marks of code that never became code"


def test_search(browser, address):
    """Searching finds something, and what it finds exists."""
    with Visit(browser, address, "search.html?q=Erlang") as visit:
        visit.page.wait_for_selector("#search-results li a", timeout=10_000)
        first = visit.page.locator("#search-results li a").first.get_attribute("href")
        assert (SITE / urlsplit(first).path).is_file()
        visit.page.wait_for_timeout(300)
        assert not visit.trouble, visit.trouble


def test_explorers_are_there(browser, address):
    """The chapters that promise an explorer have one."""
    without = [name for name in WITH_EXPLORER if 'class="vc-explorer"' not in (SITE / name).read_text("utf-8")]
    assert not without, f"chapters without an explorer: {without}"


@pytest.mark.parametrize("name", [p for p in PAGES if 'class="vc-explorer"' in (SITE / p).read_text(encoding="utf-8")])
def test_explorers(browser, address, name):
    """Every slider moves by keyboard, and picture, alternative text, value and read-out follow."""
    state = """input => {
      const root = input.closest(".vc-explorer");
      return {
        picture: root.querySelector("img").getAttribute("src"),
        "alternative text": root.querySelector("img").alt,
        "spoken value": input.getAttribute("aria-valuetext"),
        "shown value": root.querySelector(`output[for="${input.id}"]`).textContent,
        "read-out": root.querySelector("figcaption").textContent,
      };
    }"""
    with Visit(browser, address, name) as visit:
        sliders = visit.page.locator(".vc-explorer input[type=range]").all()
        assert sliders
        for slider in sliders:
            label = slider.evaluate("input => input.labels.length ? input.labels[0].textContent.trim() : ''")
            assert label, f"a slider of {name} has no label"
            before = slider.evaluate(state)
            slider.focus()
            at_end = slider.evaluate("input => Number(input.value) >= Number(input.max)")
            visit.page.keyboard.press("ArrowLeft" if at_end else "ArrowRight")
            visit.page.wait_for_timeout(50)
            after = slider.evaluate(state)
            stuck = [what for what in before if before[what] == after[what]]
            assert not stuck, f"the slider {label!r} of {name} moved, but not its {', '.join(stuck)}"
            assert all(after.values()), f"the slider {label!r} of {name} left something empty: {after}"
        pictures = visit.page.locator(".vc-explorer img")
        visit.page.wait_for_timeout(100)
        assert all(pictures.evaluate_all("all => all.map(image => image.complete && image.naturalWidth > 0)"))
        assert not visit.trouble, visit.trouble


def test_the_race_in_the_page_is_that_of_vclib(browser, address):
    """Chapter 7's explorer computes in JavaScript; vclib, with all weights of a real chain, must count the same."""
    import numpy as np

    from vclib import escape

    rules = {
        "gradient descent": escape.gradient_descent(),
        "momentum": escape.momentum(),
        "RMSprop, eps = 1e-8": escape.rmsprop(),
        "RMSprop, eps = 0": escape.rmsprop(eps=0.0),
        "Adam, eps = 1e-8": escape.adam(),
        "sign descent": escape.sign_descent(),
    }
    with Visit(browser, address, "07-chain-escape.html") as visit:
        for depth, start in ((3, 0.3), (16, 0.8), (24, 0.7), (48, 0.9)):
            for name, rule in rules.items():
                plain = name in ("gradient descent", "momentum")
                path = escape.descend(
                    np.full(depth, start),
                    rule,
                    step_size=1 / depth if plain else 0.01,
                    schedule=lambda k, plain=plain: 1.0 if plain else k**-0.5,
                    iterations=3000,
                    threshold=0.01,
                )
                shown = visit.live({"depth": depth, "start": start, "optimizer": name})
                counted = float(path.time)
                if np.isfinite(counted):
                    assert shown["iterations"] == counted, f"{name}, depth {depth}, start {start}"
                    assert f"{name} takes {counted:.0f} iterations" in shown["text"]
                else:
                    assert shown["iterations"] is None or shown["iterations"] > 3000
        assert not visit.trouble, visit.trouble


def test_the_moments_in_the_page_are_those_of_vclib(browser, address):
    """Chapter 9's explorer computes in JavaScript; the exact fractions of vclib must give the same numbers."""
    from fractions import Fraction

    import numpy as np

    from vclib import moments

    sentence = re.compile(
        r"Width (\d+), kurtosis (\S+), (?:linear|ReLU), dσ² = (\S+): eigenvalues of Q (\S+) and (\S+)\. "
        r"A layer multiplies the mean square by (\S+), the fourth moment in the long run by (\S+); "
        r"after 30 layers the fourth moment is (\S+) times the square of the mean square\."
    )
    positions = (
        (1, 1, "linear", 1), (1, 1, "ReLU", 0.33), (1, 9, "linear", 3), (1, 9, "ReLU", 3), (2, 1, "linear", 3),
        (2, 9, "ReLU", 0.33), (3, 1.8, "linear", 1.25), (3, 3, "ReLU", 2), (5, 3, "ReLU", 2.5), (10, 6, "linear", 0.8),
        (100, 1, "linear", 0.33), (100, 1, "ReLU", 3), (100, 3, "ReLU", 2), (100, 9, "linear", 3), (100, 9, "ReLU", 2),
    )  # fmt: skip
    with Visit(browser, address, "09-mlp-moments.html") as visit:
        for width, kappa, gates, variance in positions:
            shown = visit.live({"width": width, "kappa": kappa, "gates": gates, "variance": variance})
            total, p = Fraction(str(variance)), Fraction(1, 2 if gates == "ReLU" else 1)
            law = {"width": width, "kappa": Fraction(str(kappa)), "p": p}
            lower, upper = np.sort(np.linalg.eigvals(moments.recursion_matrix(**law).astype(float)).real)
            size = {"sigma2": total / width, "z2": width * (width + 2), "z4": 3 * width}
            runs = [moments.fourth_moments(k, **law, **size) for k in range(31)]
            fourth = float(runs[-1][0] / (width * (p * total) ** 30) ** 2)
            lines = [((p * total) ** k, z2 / size["z2"], z4 / size["z4"]) for k, (z2, z4) in enumerate(runs)]
            where = f"width {width}, kurtosis {kappa}, {gates}, variance {variance}"
            counted = [shown[name] for name in ("upper", "lower", "fourth")]
            assert counted == pytest.approx([upper, lower, fourth], rel=1e-9, abs=1e-9), where
            np.testing.assert_allclose(
                np.array(shown["lines"], float).T, np.array(lines, float), rtol=1e-9, err_msg=where
            )
            told = sentence.fullmatch(shown["text"])
            assert told, shown["text"]
            assert f", {gates}, " in shown["text"]
            growth = float(p**2 * total**2 / width) * upper
            expected = [width, kappa, variance, upper, lower, float(p * total), growth, fourth]
            assert [float(n) for n in told.groups()] == pytest.approx(expected, rel=0.00501, abs=1e-9), where
        start = visit.live({"width": 3, "kappa": 3, "gates": "ReLU", "variance": 2})["text"]
        assert start == (
            "Width 3, kurtosis 3, ReLU, dσ² = 2: eigenvalues of Q 8 and 0. A layer multiplies the mean square by 1, "
            "the fourth moment in the long run by 2.67; after 30 layers the fourth moment is 1e+13 times the square "
            "of the mean square."
        )
        assert not visit.trouble, visit.trouble


def _small_network(depth, width, activation, law, number):
    """Network and data of chapter 11's explorer, from its random numbers."""
    import numpy as np
    import torch

    from vclib.networks import MLP

    state, drawn = 1000003 * number, []
    for _ in range(10 + 10 * width + (depth + 2) * width**2):
        state = 16807 * state % (2**31 - 1)
        drawn.append(2 * state / (2**31 - 1) - 1)
    data, weights = np.split(np.array(drawn[10:]), [10 * width])
    weights = weights.reshape(depth + 2, width, width)
    variance = {"linear": 1, "ReLU": 2, "tanh": 1}[activation] / width
    if law == "orthogonal":
        for matrix in weights:
            q, r = np.linalg.qr(matrix.T)
            matrix[:] = (q * np.sign(np.diag(r))).T * np.sqrt(width * variance)
    else:
        weights *= np.sqrt(3 * (1 / (3 * width) if law == "LeCun" else variance))
    a, *hidden, b = torch.tensor(weights)[:, None]
    x, y = torch.tensor(np.sqrt(3) * data.reshape(2, 5, width))
    return MLP(a, tuple(hidden), b, activation.lower()), x, y


def test_the_random_numbers_of_chapter_11_are_the_minimal_standard():
    """Park and Miller (1988): started at 1, the ten thousandth state is 1043618065."""
    state = 1
    for _ in range(10000):
        state = 16807 * state % (2**31 - 1)
    assert state == 1043618065
    assert 16807 * (2**31 - 1) < 2**53  # so doubles are exact


def test_the_hessian_in_the_page_is_that_of_vclib(browser, address):
    """Chapter 11's explorer computes in JavaScript; vclib must find the same entries, and numpy the same spectrum."""
    from itertools import product

    import numpy as np
    from bs4 import BeautifulSoup

    from vclib import curvature

    number = r"(−?[\d.]+(?:e[+−]\d\d)?)"
    sentence = re.compile(
        rf"the (\d+) eigenvalues \((\d+) positive, (\d+) negative, (\d+) zero\) reach from {number} to {number} and "
        rf"add up to the trace, {number}\. The mean absolute entry is {number} in the diagonal blocks, {number} in "
        r"the others\."
    )
    laws = ("LeCun", "Xavier / He", "orthogonal")
    positions = product((2, 3, 4, 6, 8), (1, 2, 3, 4), ("linear", "ReLU", "tanh"), laws)
    page, alive = "11-mlp-curvature.html", 0
    with Visit(browser, address, page) as visit:
        for i, (depth, width, activation, law) in enumerate(positions):
            values = {"depth": depth, "width": width, "activation": activation, "law": law, "number": 1 + i * 5 % 6}
            shown, where = visit.live(values), str(values)
            h = curvature.hessian(*_small_network(**values))[0].numpy()
            eigenvalues = np.linalg.eigvalsh(h)[::-1]
            assert not re.search("NaN|undefined|Infinity", shown["svg"] + shown["text"]), where
            name = law if law != laws[1] else "He" if activation == "ReLU" else "Xavier"
            setting = f"Depth {depth}, width {width}, {activation}, {name}, network {values['number']}: "
            assert shown["text"].startswith(setting), where
            told = shown["text"].removeprefix(setting)
            if not h.any():
                assert not np.any(shown["hessian"]), where
                assert told.startswith("this network is dead."), where
                assert told.endswith(f" all {len(h)} eigenvalues."), where
                continue
            alive += 1
            np.testing.assert_allclose(shown["hessian"], h, rtol=0, atol=1e-10 * abs(h).max(), err_msg=where)
            biggest = abs(eigenvalues).max()
            np.testing.assert_allclose(shown["eigenvalues"], eigenvalues, rtol=0, atol=1e-10 * biggest, err_msg=where)
            told = sentence.fullmatch(told)
            assert told, shown["text"]
            told = [float(part.replace("−", "-")) for part in told.groups()]
            signs = np.where(abs(eigenvalues) <= 1e-13 * biggest, 0, np.sign(eigenvalues))
            assert told[:4] == [len(h), *(np.sum(signs == sign) for sign in (1, -1, 0))], where
            blocks = abs(h).reshape(depth, width**2, depth, width**2).mean(axis=(1, 3))
            ends = eigenvalues[[-1, 0]] * abs(signs[[-1, 0]])
            means = blocks.diagonal().mean(), blocks[~np.eye(depth, dtype=bool)].mean()
            assert told[4:] == pytest.approx([*ends, np.trace(h), *means], rel=0.00501), where
        assert alive >= 130, f"only {alive} of 180 networks are alive"
        start = {"depth": 4, "width": 3, "activation": "linear", "law": "Xavier / He", "number": 1}
        drawn = BeautifulSoup((SITE / page).read_text(encoding="utf-8"), "html.parser").select_one(".vc-explorer")
        assert visit.live(start)["text"] == drawn.figcaption.get_text(), "what the page computes, and what Python drew"
        assert not visit.trouble, visit.trouble
