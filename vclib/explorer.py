"""Sliders that are alive in static HTML, JupyterLab, VS Code and Colab alike: every position is drawn beforehand."""

import base64
import gzip
import hashlib
import html
import io
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import matplotlib.pyplot as plt

from .plotting import WIDTH
from .runtime import progress, scale

MOST_FRAMES = 400
STYLES = {
    "figure": "margin:1em 0",
    "row": "display:flex;gap:.6em;align-items:center;margin:.3em 0;max-width:640px",
    "label": "flex:0 0 9em",
    "input": "flex:1;min-width:6em;height:28px",
    "output": "flex:0 0 7em;font-variant-numeric:tabular-nums",
}


@dataclass(frozen=True)
class Slider:
    """One slider: its label, the values it stops at, the one it starts at, and how to write a value."""

    label: str
    values: Sequence[Any]
    start: Any = None
    text: Callable[[Any], str] = lambda value: f"{value:g}"


class Explorer:
    """A figure with sliders.

    ``draw(figure, **values) -> str`` draws on an empty figure and returns one sentence on what it shows: the read-out
    under the figure. The alternative text is the title, the setting and this sentence. There is one slider for each
    keyword of ``draw``; at scale ``smoke`` only its first, start and last value are drawn. The height is in inches.

    With ``live``, only the start is drawn beforehand, and the page computes every other position itself: it is the
    name of a file of vclib that holds one JavaScript expression, a function ``(values) => ({svg, text})``.

    Raises ValueError if there is nothing to slide, more than 400 pictures would be drawn, or a start is not among
    the values.

    >>> def draw(figure, power):
    ...     figure.subplots().plot([0, 1], [0, 2**power])
    ...     return f"The line ends at {2**power}."
    >>> explorer = Explorer(draw, title="A line", sliders={"power": Slider("Power", [1, 3])})
    >>> [frame["text"] for frame in explorer.frames]
    ['The line ends at 2.', 'The line ends at 8.']
    """

    def __init__(
        self,
        draw: Callable[..., str],
        *,
        title: str,
        sliders: Mapping[str, Slider],
        height: float = 3.3,
        live: str = "",
    ) -> None:
        self.draw, self.title, self.sliders, self.height, self.live = draw, title, dict(sliders), height, live
        pictures = math.prod(1 if live else len(slider.values) for slider in self.sliders.values()) if sliders else 0
        if not 1 <= pictures <= MOST_FRAMES:
            raise ValueError(f"An explorer has 1 to {MOST_FRAMES} pictures, not {pictures}.")
        self.values = {name: _stops(name, slider, live) for name, slider in self.sliders.items()}
        drawn = [[self._start(name)] for name in self.sliders] if live else self.values.values()
        positions = itertools.product(*drawn)
        self.frames = [self._frame(dict(zip(self.sliders, p, strict=True))) for p in progress(positions, title)]

    def interact(self) -> None:
        """In a live kernel, draw at any value between the stops, with ipywidgets."""
        import ipywidgets

        def show(**values: Any) -> None:
            print(self.draw(plt.figure(figsize=(WIDTH, self.height)), **values))
            plt.show()

        def control(name: str) -> ipywidgets.Widget:
            stops, label = self.values[name], self.sliders[name].label
            if not all(isinstance(stop, int | float) for stop in stops):
                return ipywidgets.SelectionSlider(options=list(stops), description=label)
            whole = all(isinstance(stop, int) for stop in stops)
            kind = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
            return kind(min=min(stops), max=max(stops), value=self._start(name), description=label)

        ipywidgets.interact(show, **{name: control(name) for name in self.sliders})

    def _start(self, name: str) -> Any:
        start = self.sliders[name].start
        return self.values[name][0] if start is None else start

    def _frame(self, values: dict[str, Any]) -> dict[str, str]:
        figure = plt.figure(figsize=(WIDTH, self.height))
        text = self.draw(figure, **values)
        svg = io.StringIO()
        figure.savefig(svg, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        plt.close(figure)
        picture = svg.getvalue()
        picture = picture[picture.index("<svg") :]  # without the XML declaration and the document type
        picture = re.sub(r' d="[^"]+"', lambda path: re.sub(r"(\.\d)\d+", r"\1", path[0]), picture)
        setting = ", ".join(f"{self.sliders[name].label} {self.sliders[name].text(v)}" for name, v in values.items())
        return {"svg": picture, "alt": f"{self.title}; {setting}. {text}", "text": text}

    def _repr_html_(self) -> str:
        lines: dict[str, int] = {}  # most lines of the pictures are alike, so each is sent once
        frames = [
            frame | {"svg": [lines.setdefault(line, len(lines)) for line in frame["svg"].split("\n")]}
            for frame in self.frames
        ]
        data: Any = {"title": self.title, "values": self.values} if self.live else {}
        data = json.dumps(data | {"lines": list(lines), "frames": frames}, separators=(",", ":"))
        packed = base64.b64encode(gzip.compress(data.encode(), mtime=0)).decode()
        key = "vc-" + hashlib.sha256(packed.encode()).hexdigest()[:10]
        index, rows = 0, []
        for name, slider in self.sliders.items():
            values, start = self.values[name], self.values[name].index(self._start(name))
            texts = [slider.text(value) for value in values]
            index = 0 if self.live else index * len(values) + start
            rows.append(
                f'<div class="vc-row" style="{STYLES["row"]}">'
                f'<label for="{key}-{name}" style="{STYLES["label"]}">{html.escape(slider.label)}</label>'
                f'<input type="range" id="{key}-{name}" data-name="{name}" min="0" max="{len(values) - 1}" step="1"'
                f' value="{start}"'
                f' aria-valuetext="{html.escape(texts[start])}" data-texts="{html.escape(json.dumps(texts))}"'
                f' data-lm-suppress-shortcuts="true" style="{STYLES["input"]}">'
                f'<output for="{key}-{name}" style="{STYLES["output"]}">{html.escape(texts[start])}</output></div>'
            )
        first = self.frames[index]
        picture = base64.b64encode(first["svg"].encode()).decode()
        live = f"(window.vcLive ||= {{}})['{key}'] =\n{_script(self.live)};\n" if self.live else ""
        return (
            f'<figure class="vc-explorer" id="{key}" data-frames="{packed}" style="{STYLES["figure"]}">'
            f'<img src="data:image/svg+xml;base64,{picture}" alt="{html.escape(first["alt"])}" style="max-width:100%">'
            f'{"".join(rows)}<figcaption aria-live="polite">{html.escape(first["text"])}</figcaption>'
            "<noscript>The sliders need JavaScript; the picture shows where they start.</noscript></figure>"
            f"<script>{live}{_script('explorer.js')}</script>"
        )

    def __repr__(self) -> str:
        return f"Explorer({self.title!r}, {len(self.frames)} pictures)"


def _script(name: str) -> str:
    return files("vclib").joinpath(name).read_text(encoding="utf-8")


def _stops(name: str, slider: Slider, live: str) -> list[Any]:
    values = list(slider.values)
    if slider.start is not None and slider.start not in values:
        raise ValueError(f"The slider {name!r} starts at {slider.start!r}, which is not among its values.")
    if live or scale() != "smoke":
        return values
    return [v for i, v in enumerate(values) if i in (0, len(values) - 1) or v == slider.start]
