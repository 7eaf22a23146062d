"""What the reader meets: scale and progress, verdict cards, exercises, figures and sliders."""

import base64
import gzip
import html
import io
import json
import math
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

mpl.use("Agg")

import matplotlib.pyplot as plt

from vclib import claims, exercises, explorer, plotting, runtime
from vclib.exercises import Exercise
from vclib.explorer import Explorer, Slider

modest = settings(deadline=None, max_examples=40, derandomize=True)
MARKUP = "<b>&\"'</b>"


@pytest.fixture
def shown(monkeypatch):
    """What claims and exercises hand to IPython."""
    seen = []
    for module in (claims, exercises):
        monkeypatch.setattr(module, "display", seen.append)
    return seen


@pytest.fixture
def house_style():
    with plt.rc_context():
        plotting.use()
        yield
    plt.close("all")


# ---- runtime


@pytest.mark.parametrize("name", ["smoke", "laptop", "paper"])
def test_the_environment_sets_the_scale(monkeypatch, name):
    monkeypatch.setenv("VCLIB_SCALE", name)
    assert runtime.scale() == name
    assert runtime.choose(smoke="smoke", laptop="laptop", paper="paper") == name


@pytest.mark.parametrize("setting", [None, ""])
@pytest.mark.parametrize(("gpu", "expected"), [(False, "laptop"), (True, "paper")])
def test_without_it_the_hardware_does(monkeypatch, setting, gpu, expected):
    monkeypatch.delenv("VCLIB_SCALE", raising=False)
    if setting is not None:
        monkeypatch.setenv("VCLIB_SCALE", setting)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert runtime.scale() == expected
    assert runtime.device().type == ("cuda" if gpu else "cpu")


def test_an_unknown_scale_says_what_is_accepted(monkeypatch):
    monkeypatch.setenv("VCLIB_SCALE", "huge")
    with pytest.raises(ValueError, match="VCLIB_SCALE is 'huge'; set it to 'smoke', 'laptop' or 'paper'"):
        runtime.choose(smoke=1, laptop=2, paper=3)


def test_generators_repeat_and_differ_by_seed():
    def draw(seed):
        rng, torch_rng = runtime.generators(seed)
        return rng.random(), torch.rand(1, generator=torch_rng).item()

    assert draw(7) == draw(7)
    assert all(a != b for a, b in zip(draw(7), draw(8), strict=True))


def test_generators_leave_the_global_ones_alone():
    before = torch.random.get_rng_state()
    runtime.generators(3)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("seed", [-1, 1.5])
def test_a_seed_that_is_none_raises(seed):
    with pytest.raises(ValueError, match="A seed is a non-negative integer"):
        runtime.generators(seed)


class Stream(io.StringIO):
    def __init__(self, tty):
        super().__init__()
        self.tty = tty

    def isatty(self):
        return self.tty


@pytest.mark.parametrize(
    ("tty", "kernel", "static", "speaks"),
    [
        (False, False, "", False),
        (True, False, "", True),
        (False, True, "1", False),
        (False, True, "", True),
    ],
)
def test_progress_speaks_only_where_someone_watches(monkeypatch, tty, kernel, static, speaks):
    settings_seen = []
    monkeypatch.setattr(runtime.sys, "stderr", Stream(tty))
    monkeypatch.setitem(runtime.sys.modules, "ipykernel", runtime)
    if not kernel:
        monkeypatch.delitem(runtime.sys.modules, "ipykernel")
    monkeypatch.setenv("VCLIB_STATIC", static)
    monkeypatch.setattr(runtime, "tqdm", lambda items, **options: settings_seen.append(options) or items)
    assert list(runtime.progress([3, 1], "words", unit="x")) == [3, 1]
    shown = {"desc": "words", "leave": False, "unit": "x", "delay": 1}
    assert settings_seen == [shown] * speaks  # a silent bar would still take tqdm's lock


def test_silent_progress_writes_nothing(monkeypatch):
    stream = Stream(False)
    monkeypatch.setattr(runtime.sys, "stderr", stream)
    monkeypatch.setenv("VCLIB_STATIC", "1")
    assert list(runtime.progress(range(5), "words")) == [0, 1, 2, 3, 4]
    assert stream.getvalue() == ""


def test_announce_is_one_line(monkeypatch, capsys):
    monkeypatch.setenv("VCLIB_SCALE", "smoke")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    runtime.announce()
    assert re.fullmatch(r"scale: smoke · device: cpu, \d+ threads\n", capsys.readouterr().out)


def test_announce_names_the_gpu(monkeypatch, capsys):
    monkeypatch.setenv("VCLIB_SCALE", "paper")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    runtime.announce()
    assert capsys.readouterr().out == "scale: paper · device: Some GPU\n"


# ---- claims


def check(measured, expected, *, control=1e9, **options):
    claims.check(
        "id", "statement", measured=measured, expected=expected, control=control, control_label="far", **options
    )


HOLDS = {
    "exact": (2, 2, {"tolerance": 0}),
    "relative": (100.9, 100.0, {"tolerance": 0.01}),
    "relative below": (-99.1, -100.0, {"tolerance": 0.01}),
    "absolute at zero": (0.009, 0.0, {"tolerance": 0.01}),
    "four standard errors": (1.39, 1.0, {"standard_error": 0.1}),
    "at most": (-5.0, 1.0, {"relation": "<=", "tolerance": 0}),
    "at most, touching": (1.0, 1.0, {"relation": "<=", "tolerance": 0}),
    "at most, within slack": (1.3, 1.0, {"relation": "<=", "standard_error": 0.1}),
    "at least": (5.0, 1.0, {"relation": ">=", "tolerance": 0, "control": -1e9}),
    "at least, within slack": (0.7, 1.0, {"relation": ">=", "standard_error": 0.1, "control": -1e9}),
    "arrays": ([1.0, 2.0], [1.0, 2.001], {"tolerance": 0.001}),
    "array against number": ([1.0, 1.0], 1.0, {"tolerance": 0}),
    "array of errors": ([1.3, 5.0], [1.0, 2.0], {"standard_error": [0.1, 1.0]}),
    "torch": (torch.tensor(2.0), 2, {"tolerance": 0}),
}
FAILS = {
    "exact": (2 + 1e-15, 2, {"tolerance": 0}),
    "relative": (101.1, 100.0, {"tolerance": 0.01}),
    "relative below": (-101.1, -100.0, {"tolerance": 0.01}),
    "absolute at zero": (0.011, 0.0, {"tolerance": 0.01}),
    "four standard errors": (1.41, 1.0, {"standard_error": 0.1}),
    "no error": (1.0001, 1.0, {"standard_error": 0.0}),
    "at most": (1.0 + 1e-12, 1.0, {"relation": "<=", "tolerance": 0}),
    "at least": (1.0 - 1e-12, 1.0, {"relation": ">=", "tolerance": 0, "control": -1e9}),
    "one of many": ([1.0, 2.0, 4.0], [1.0, 2.0, 3.0], {"tolerance": 0.01}),
    "nan": (math.nan, 1.0, {"tolerance": 1e9}),
    "nan at most": (math.nan, 1.0, {"relation": "<=", "tolerance": 0}),
    "nan at least": (math.nan, 1.0, {"relation": ">=", "tolerance": 0}),
    "nan expected": (1.0, math.nan, {"tolerance": 0.1}),
    "nan error": (1.0, 1.0, {"standard_error": math.nan}),
    "nan among many": ([1.0, math.nan], [1.0, 1.0], {"tolerance": 0.1}),
}


@pytest.mark.parametrize("name", HOLDS)
def test_a_true_claim_shows_one_card(shown, name):
    measured, expected, options = HOLDS[name]
    check(measured, expected, **options)
    (card,) = shown
    assert repr(card).startswith("[holds] id: statement - ")


@pytest.mark.parametrize("name", FAILS)
def test_a_false_claim_stops_the_notebook(shown, name):
    measured, expected, options = FAILS[name]
    with pytest.raises(claims.ClaimFailed, match="id: statement - but not"):
        check(measured, expected, **options)
    assert shown == []


@pytest.mark.parametrize(
    ("relation", "control"), [("==", 1.05), ("<=", 0.5), ("<=", 1.0), (">=", 7.0), ("==", [1.0, 1.0])]
)
def test_a_check_that_accepts_its_control_fails(shown, relation, control):
    with pytest.raises(claims.ClaimFailed, match="proves nothing, it does not reject far"):
        check(1.0, 1.0, relation=relation, tolerance=0.1, control=control)
    assert shown == []


def test_a_control_that_is_not_a_number_proves_nothing():
    with pytest.raises(claims.ClaimFailed, match="proves nothing"):
        claims.check("id", "s", measured=1, expected=1, tolerance=0, control=np.nan, control_label="nothing")


@modest
@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(0, 10))
def test_a_claim_holds_exactly_within_its_tolerance(measured, expected, tolerance):
    slack = tolerance * (abs(expected) if expected else 1.0)
    try:
        claims.check(
            "i", "s", measured=measured, expected=expected, tolerance=tolerance, control=1e12, control_label="c"
        )
        held = True
    except claims.ClaimFailed:
        held = False
    assert held == (abs(measured - expected) <= slack)


@pytest.mark.parametrize("options", [{}, {"tolerance": 0.1, "standard_error": 0.1}])
def test_exactly_one_of_tolerance_and_error(options):
    with pytest.raises(ValueError, match="'id' needs either a tolerance or a standard error"):
        check(1, 1, **options)


def test_an_unknown_relation_raises():
    with pytest.raises(ValueError, match="'<' is unknown; choose one of ==, <=, >="):
        check(1, 1, relation="<", tolerance=0)


def test_the_card_says_what_was_compared(shown):
    check(1.25, 1.0, standard_error=0.1, control=2.0)
    check([1, 2, 3, 4], [1, 2, 3, 4], tolerance=0, control=[4, 3, 2, 1])
    check(3.0, 2.0, relation=">=", tolerance=1e-6, control=1.0)
    assert [repr(card).removeprefix("[holds] id: statement - ") for card in shown] == [
        "1.25 equals 1 ± 0.1 (standard error). The same test rejects far: 2.",
        "[1, 2, 3, …] equals [1, 2, 3, …] exactly. The same test rejects far: [4, 3, 2, …].",
        "3 is at least 2 (to 1e-06). The same test rejects far: 1.",
    ]


def test_the_card_is_escaped_and_anchored(shown):
    claims.check(MARKUP, MARKUP, measured=1, expected=1, tolerance=0, control=2, control_label=MARKUP)
    claims.check("prop-3.mean", "s", measured=1, expected=1, tolerance=0, control=2, control_label="c")
    risky, plain = (card._repr_html_() for card in shown)
    assert "<b>" not in risky
    assert risky.count(html.escape(MARKUP)) == 4
    assert 'id="check-prop-3.mean"' in plain
    assert "Holds." in plain


def test_outside_a_notebook_the_card_is_a_line(capsys):
    check(1, 1, tolerance=0)
    assert capsys.readouterr().out.count("\n") == 1


def test_a_failed_claim_is_an_assertion():
    assert issubclass(claims.ClaimFailed, AssertionError)


# ---- exercises


def exercise():
    mistakes = [(lambda a: a == -4, "Mind the sign."), (lambda a: a == 8, "Half of that.")]
    return Exercise("Twice 2", grade=lambda a: abs(a - 4) < 1e-9, hint="2 + 2", mistakes=mistakes)


@pytest.mark.parametrize(
    ("answer", "state", "message"),
    [
        (..., "not-attempted", 'Replace the three dots by your answer to "Twice 2".'),
        (4, "correct", "Twice 2"),
        (4.0 + 1e-12, "correct", "Twice 2"),
        (-4, "not-yet", "Mind the sign."),
        (8, "not-yet", "Half of that."),
        (5, "not-yet", "2 + 2"),
    ],
)
def test_answers_get_their_verdict(shown, answer, state, message):
    exercise().check(answer)
    (feedback,) = shown
    assert (feedback.state, feedback.message) == (state, message)
    assert repr(feedback) == f"{exercises.STATES[state]} {message}"


NONSENSE = [None, "four", [4], {"a": 4}, object(), lambda: 4, np.array([1.0, 2.0]), [...], float("nan"), int, 4j]


@pytest.mark.parametrize("answer", NONSENSE, ids=[type(a).__name__ for a in NONSENSE])
def test_nonsense_is_not_yet_right(shown, answer):
    exercise().check(answer)
    assert shown[0].state == "not-yet"
    assert shown[0].message == "2 + 2"


@pytest.mark.parametrize("answer", [..., 5, -4, "four"])
def test_our_own_solution_must_be_right(shown, answer):
    with pytest.raises(AssertionError, match='Our solution to "Twice 2" fails its own check'):
        exercise().solve(answer)
    assert shown == []


def test_our_own_right_solution_is_shown(shown):
    exercise().solve(4)
    assert shown[0].state == "correct"


def test_feedback_is_escaped(shown):
    Exercise(MARKUP, grade=lambda a: a == 1, hint=MARKUP).check(2)
    Exercise(MARKUP, grade=lambda a: a == 1, hint=MARKUP).check(1)
    for feedback, state in zip(shown, ("not-yet", "correct"), strict=True):
        text = feedback._repr_html_()
        assert "<b>" not in text
        assert html.escape(MARKUP) in text
        assert f'class="vc-exercise vc-{state}"' in text


# ---- plotting


def drawn_band(ax):
    """x -> (lowest, highest) corner of the band."""
    corners = ax.collections[0].get_paths()[0].vertices
    return {x: (corners[corners[:, 0] == x, 1].min(), corners[corners[:, 0] == x, 1].max()) for x in set(corners[:, 0])}


def test_a_band_is_median_and_central_95_percent(house_style):
    runs = np.random.default_rng(0).normal(size=(200, 3)).cumsum(axis=1)
    _, (ax,) = plotting.stack(1)
    plotting.band(ax, [1, 2, 5], runs, "runs", style=1)
    (line,) = ax.lines
    in_order = np.sort(runs, axis=0)
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 5])
    np.testing.assert_allclose(line.get_ydata(), (in_order[99] + in_order[100]) / 2, rtol=1e-12)
    assert (line.get_color(), line.get_marker(), line.get_label()) == (plotting.COLORS[1], "s", "runs")
    corners = drawn_band(ax)
    for k, x in enumerate((1, 2, 5)):
        low, high = corners[x]
        assert in_order[4, k] <= low <= in_order[5, k]
        assert in_order[194, k] <= high <= in_order[195, k]


def test_a_band_leaves_nan_out(house_style):
    _, (ax,) = plotting.stack(1)
    plotting.band(ax, [0, 1], [[1.0, np.nan], [3.0, 5.0], [np.nan, 7.0], [2.0, 6.0]], "runs")
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [2.0, 6.0])


def test_a_band_leaves_a_point_without_any_number_out(house_style):
    _, (ax,) = plotting.stack(1)
    plotting.band(ax, [1, 2], [[np.nan, 1.0], [np.nan, 3.0]], "runs")
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [np.nan, 2.0])


@pytest.mark.parametrize("shape", [(3,), (5, 2), (3, 5), (2, 3, 1)])
def test_runs_of_another_shape_raise(house_style, shape):
    _, (ax,) = plotting.stack(1)
    with pytest.raises(ValueError, match=r"runs must have shape \(seeds, 3\)"):
        plotting.band(ax, [0, 1, 2], np.ones(shape), "runs")


def test_styles_differ_without_colour(house_style):
    assert len({str(d) for d in plotting.DASHES}) == len(set(plotting.MARKERS)) == len(set(plotting.COLORS)) == 6
    _, (ax,) = plotting.stack(1)
    for style in range(7):
        plotting.band(ax, [0, 1], np.ones((3, 2)), "runs", style=style)
    looks = [(line.get_color(), line.get_marker()) for line in ax.lines]
    assert len(set(looks)) == 6
    assert looks[6] == looks[0]


def test_panels_stand_above_each_other(house_style):
    figure, axes = plotting.stack(3, height=2.0, sharex=True)
    assert axes.shape == (3,)
    np.testing.assert_allclose(figure.get_size_inches(), [plotting.WIDTH, 6.0])
    figure.canvas.draw()
    tops = [ax.get_position().y1 for ax in axes]
    assert tops == sorted(tops, reverse=True)


def test_the_house_style_asks_for_svg(monkeypatch):
    asked = []
    monkeypatch.setattr(
        plotting, "set_matplotlib_formats", lambda *formats, **options: asked.append((formats, options))
    )
    with plt.rc_context():
        plotting.use()
        assert plt.rcParams["svg.hashsalt"] == "vclib"
        assert plt.rcParams["figure.constrained_layout.use"]
        cycle = list(plt.rcParams["axes.prop_cycle"])
    assert asked == [(("svg",), {"metadata": {"Date": None}})]
    assert [entry["color"] for entry in cycle] == list(plotting.COLORS)


# ---- explorer


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.texts.append("")

    def handle_data(self, data):
        if self.texts:
            self.texts[-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self, tag):
        return [text for (name, _), text in zip(self.tags, self.texts, strict=True) if name == tag]


def draw(figure, **values):
    figure.subplots().plot([0, 1], [0, len(values)])
    return "Shown: " + ", ".join(f"{k}={v}" for k, v in values.items()) + "."


def blank(figure, **values):
    return ", ".join(map(str, values.values()))


def two_sliders(picture=blank, **options):
    sliders = {
        "depth": Slider("Depth L", [1, 10, 100, 1000], start=10, text="{:,d} layers".format),
        "tau": Slider("τ", [0.5, 1.0, 2.5]),
    }
    return Explorer(picture, title="A figure", sliders=sliders, **options)


@pytest.fixture
def laptop(monkeypatch, house_style):
    monkeypatch.setenv("VCLIB_SCALE", "laptop")


def unpack(tags):
    """The frames as explorer.js sees them: every line of every picture is sent once."""
    data = json.loads(gzip.decompress(base64.b64decode(tags.all("figure")[0]["data-frames"])))
    assert len(set(data["lines"])) == len(data["lines"])
    return [frame | {"svg": "\n".join(data["lines"][i] for i in frame["svg"])} for frame in data["frames"]]


def test_a_frame_for_every_position_the_last_slider_fastest(laptop):
    expected = [f"{depth}, {tau}" for depth in (1, 10, 100, 1000) for tau in (0.5, 1.0, 2.5)]
    figure = two_sliders()
    assert [frame["text"] for frame in figure.frames] == expected
    assert figure.frames[5]["alt"] == "A figure; Depth L 10 layers, τ 2.5. 10, 2.5"
    assert repr(figure) == "Explorer('A figure', 12 pictures)"


def test_smoke_keeps_first_start_and_last(laptop, monkeypatch):
    monkeypatch.setenv("VCLIB_SCALE", "smoke")
    figure = two_sliders()
    assert [frame["text"] for frame in figure.frames] == [f"{d}, {t}" for d in (1, 10, 1000) for t in (0.5, 2.5)]
    assert [tag["value"] for tag in Tags(figure._repr_html_()).all("input")] == ["1", "0"]


def test_the_page_has_a_labelled_range_for_each_slider(laptop):
    tags = Tags(two_sliders(draw)._repr_html_())
    ranges, labels, outputs = tags.all("input"), tags.all("label"), tags.all("output")
    assert [r["type"] for r in ranges] == ["range", "range"]
    assert [r["max"] for r in ranges] == ["3", "2"]
    assert [r["min"] for r in ranges] == ["0", "0"]
    assert [r["value"] for r in ranges] == ["1", "0"]
    assert [r["aria-valuetext"] for r in ranges] == ["10 layers", "0.5"]
    assert [json.loads(r["data-texts"]) for r in ranges] == [
        ["1 layers", "10 layers", "100 layers", "1,000 layers"],
        ["0.5", "1", "2.5"],
    ]
    ids = [r["id"] for r in ranges]
    assert len(set(ids)) == 2
    assert [label["for"] for label in labels] == ids
    assert [output["for"] for output in outputs] == ids
    assert tags.text("label") == ["Depth L", "τ"]
    assert tags.text("output") == ["10 layers", "0.5"]


def test_the_first_picture_is_that_of_the_start(laptop):
    figure = two_sliders(draw)
    tags, start = Tags(figure._repr_html_()), figure.frames[3]
    (image,) = tags.all("img")
    assert start["text"] == "Shown: depth=10, tau=0.5."
    assert image["alt"] == start["alt"] == "A figure; Depth L 10 layers, τ 0.5. Shown: depth=10, tau=0.5."
    prefix = "data:image/svg+xml;base64,"
    assert image["src"].startswith(prefix)
    assert base64.b64decode(image["src"].removeprefix(prefix)).decode() == start["svg"]
    assert tags.text("figcaption") == [start["text"]]
    assert tags.all("figcaption")[0]["aria-live"] == "polite"


def test_packed_frames_are_the_frames(laptop):
    figure = two_sliders(draw)
    frames = unpack(Tags(figure._repr_html_()))
    assert frames == figure.frames
    assert len(frames) == 12
    assert all(frame["svg"].startswith("<svg") and frame["svg"].rstrip().endswith("</svg>") for frame in frames)


def test_two_builds_give_the_same_page(laptop):
    first, again = two_sliders(draw), two_sliders(draw)
    assert first._repr_html_() == again._repr_html_()
    other = Explorer(draw, title="Another", sliders={"depth": Slider("Depth", [1, 2])})
    ids = [Tags(e._repr_html_()).all("figure")[0]["id"] for e in (first, again, other)]
    assert ids[0] == ids[1] != ids[2]


def test_titles_labels_and_texts_are_escaped(laptop):
    slider = Slider(MARKUP, [1, 2], text=lambda v: f"{MARKUP}{v}")
    page = Explorer(lambda figure, a: MARKUP, title=MARKUP, sliders={"a": slider})._repr_html_()
    assert "<b>" not in page
    tags = Tags(page)
    assert tags.all("img")[0]["alt"] == f"{MARKUP}; {MARKUP} {MARKUP}1. {MARKUP}"
    assert json.loads(tags.all("input")[0]["data-texts"]) == [f"{MARKUP}1", f"{MARKUP}2"]
    assert tags.text("label") == tags.text("figcaption") == [MARKUP]
    assert tags.text("output") == [f"{MARKUP}1"]


def test_nothing_is_fetched(laptop):
    page = two_sliders(draw)._repr_html_()
    assert not re.search(r"https?:|//\w+\.", re.sub(r"<script>.*</script>", "", page))
    tags = Tags(page)
    assert not any("src" in script for script in tags.all("script"))
    assert not re.search(r"https?:|import\s*\(|XMLHttp", tags.text("script")[0])
    for frame in unpack(tags):
        svg = Tags(frame["svg"])
        for _, attributes in svg.tags:
            for name, value in attributes.items():
                if name in ("src", "href", "xlink:href"):
                    assert value.startswith("#"), (name, value)
                assert name.startswith("xmlns") or "http" not in (value or ""), (name, value)
                assert "url(" not in (value or "") or "url(#" in value
        assert "@import" not in frame["svg"]


def test_a_typical_frame_weighs_little(laptop):
    def typical(figure, k):
        ax = figure.subplots()
        t = np.linspace(0, 6, 200)
        for shift in range(3):
            ax.plot(t, np.sin(t + k + shift), label=f"curve {shift}")
        ax.set(xlabel="depth $L$", ylabel="size", title="A typical picture")
        ax.legend()
        return "Three curves."

    explorer_of_ten = Explorer(typical, title="Typical", sliders={"k": Slider("k", range(10))})
    packed = Tags(explorer_of_ten._repr_html_()).all("figure")[0]["data-frames"]
    assert len(packed) / 10 < 15_000


def test_rounding_the_paths_keeps_the_picture(laptop, monkeypatch):
    pictures = []

    def sub(pattern, replacement, text):
        pictures.append(text)
        return re.sub(pattern, replacement, text)

    monkeypatch.setattr(explorer, "re", SimpleNamespace(sub=sub))
    number = r"-?\d+\.?\d*(?:e-?\d+)?"
    figure = Explorer(draw, title="A line", sliders={"k": Slider("k", [1, 2])})
    raw = pictures[0]
    rounded = figure.frames[0]["svg"]
    for before, after in zip(re.findall(r' d="([^"]+)"', raw), re.findall(r' d="([^"]+)"', rounded), strict=True):
        old, new = (np.array(re.findall(number, path), float) for path in (before, after))
        assert len(old) == len(new)
        assert np.abs(old - new).max() <= 0.1


@pytest.mark.parametrize("sliders", [{}, {"a": Slider("A", range(401))}, {k: Slider(k, range(8)) for k in "abc"}])
def test_too_many_or_no_pictures_raise(laptop, sliders):
    with pytest.raises(ValueError, match="An explorer has 1 to 400 pictures"):
        Explorer(blank, title="t", sliders=sliders)


def test_a_slider_without_values_raises(laptop):
    with pytest.raises(ValueError, match="An explorer has 1 to 400 pictures, not 0"):
        Explorer(blank, title="t", sliders={"a": Slider("A", [])})


@pytest.mark.parametrize("scale", ["smoke", "laptop"])
def test_a_start_that_is_no_stop_raises(laptop, monkeypatch, scale):
    monkeypatch.setenv("VCLIB_SCALE", scale)
    with pytest.raises(ValueError, match="The slider 'a' starts at 5, which is not among its values"):
        Explorer(blank, title="t", sliders={"a": Slider("A", [1, 2], start=5)})


def test_drawing_leaves_no_figure_open(laptop):
    before = plt.get_fignums()
    two_sliders(draw)
    assert plt.get_fignums() == before


def test_words_can_be_stops(laptop):
    figure = Explorer(blank, title="t", sliders={"law": Slider("Law", ["he", "xavier"], start="xavier", text=str)})
    assert Tags(figure._repr_html_()).all("input")[0]["aria-valuetext"] == "xavier"


def test_in_a_live_kernel_widgets_take_over(laptop, monkeypatch):
    ipywidgets = pytest.importorskip("ipywidgets")
    made = {}
    monkeypatch.setattr(ipywidgets, "interact", lambda show, **controls: made.update(controls))
    figure = Explorer(
        blank,
        title="t",
        sliders={"n": Slider("n", [1, 9], start=9), "x": Slider("x", [0.5, 2]), "w": Slider("w", ["a", "b"], text=str)},
    )
    figure.interact()
    assert [type(made[k]).__name__ for k in "nxw"] == ["IntSlider", "FloatSlider", "SelectionSlider"]
    assert (made["n"].min, made["n"].max, made["n"].value) == (1, 9, 9)
    assert (made["x"].min, made["x"].max, made["x"].value) == (0.5, 2.0, 0.5)
    assert made["w"].options == ("a", "b")


def test_table_shows_cells_and_escapes_them():
    table = plotting.Table(("method", "loss < 1"), [("a & b", 3), ("momentum", "never")])
    assert repr(table) == "method    loss < 1\na & b            3\nmomentum     never"
    page = table._repr_html_()
    assert "a &amp; b" in page
    assert "loss &lt; 1" in page
    assert page.count("<tr>") == 3


def test_table_refuses_rows_of_another_length():
    with pytest.raises(ValueError, match="zip"):
        repr(plotting.Table(("a", "b"), [(1, 2, 3)]))


def live_explorer(values=(1, 2, 3), **options):
    def draw(figure, depth):
        figure.subplots().plot([0, depth])
        return f"Depth {depth}."

    sliders = {"depth": explorer.Slider("Depth", values, start=values[1])}
    return explorer.Explorer(draw, title="Race", sliders=sliders, live="descent.js", **options)


def test_a_live_explorer_draws_only_its_start():
    live = live_explorer()
    assert [frame["text"] for frame in live.frames] == ["Depth 2."]
    page = live._repr_html_()
    assert "window.vcLive" in page
    assert 'data-name="depth"' in page
    assert 'value="1"' in page  # the second stop
    key = re.search(r'id="(vc-[0-9a-f]{10})"', page).group(1)
    assert f"['{key}'] =" in page


def test_a_live_explorer_keeps_all_stops_at_smoke_and_may_have_many(monkeypatch):
    monkeypatch.setenv("VCLIB_SCALE", "smoke")
    live = live_explorer(tuple(range(1000)))
    assert len(live.values["depth"]) == 1000


def test_a_live_explorer_names_its_values_in_the_data():
    packed = re.search(r'data-frames="([^"]+)"', live_explorer()._repr_html_()).group(1)
    data = json.loads(gzip.decompress(base64.b64decode(packed)))
    assert data["values"] == {"depth": [1, 2, 3]}
    assert data["title"] == "Race"
