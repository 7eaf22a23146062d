"""Exercises that answer: a stub says "not attempted yet", a wrong answer gets a hint."""

import html
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from IPython.display import display

STATES = {"not-attempted": "… Not attempted yet.", "correct": "✓ Correct.", "not-yet": "✗ Not yet."}
STYLE = "border-left:4px solid #56B4E9;padding:.3em .8em;margin:.6em 0"


@dataclass(frozen=True, repr=False)
class Feedback:
    """What the reader sees under an exercise; ``state`` is ``not-attempted``, ``correct`` or ``not-yet``."""

    state: str
    message: str

    def __repr__(self) -> str:
        return f"{STATES[self.state]} {self.message}".strip()

    def _repr_html_(self) -> str:
        text = f"<strong>{STATES[self.state]}</strong> {html.escape(self.message)}"
        return f'<div class="vc-exercise vc-{self.state}" style="{STYLE}">{text}</div>'


@dataclass(frozen=True)
class Exercise:
    """An exercise with a grader.

    Parameters
    ----------
    name
        Its number and title.
    grade
        Takes the answer and returns whether it is right; it may raise on nonsense.
    hint
        Shown for a wrong answer that is in no list.
    mistakes
        Pairs of a test for a common mistake and the hint that helps.

    Examples
    --------
    >>> double = Exercise("Twice 2", grade=lambda answer: answer == 4, hint="2 + 2")
    >>> double.check(...)
    … Not attempted yet. Replace the three dots by your answer to "Twice 2".
    >>> double.check(5)
    ✗ Not yet. 2 + 2
    >>> double.solve(4)
    ✓ Correct. Our solution passes the same check.
    """

    name: str
    grade: Callable[[Any], bool]
    hint: str
    mistakes: list[tuple[Callable[[Any], bool], str]] = field(default_factory=list)

    def feedback(self, answer: Any) -> Feedback:
        """Judge an answer; ``...`` is the untouched stub."""
        if answer is ...:
            return Feedback("not-attempted", f'Replace the three dots by your answer to "{self.name}".')
        for is_mistake, hint in self.mistakes:
            if _safely(is_mistake, answer):
                return Feedback("not-yet", hint)
        return Feedback("correct", self.name) if _safely(self.grade, answer) else Feedback("not-yet", self.hint)

    def check(self, answer: Any) -> None:
        """Show the verdict on a reader's answer; never raises."""
        display(self.feedback(answer))

    def solve(self, answer: Any) -> None:
        """Show the verdict on our own solution, and raise ``AssertionError`` if it is not right."""
        verdict = self.feedback(answer)
        if verdict.state != "correct":
            raise AssertionError(f'Our solution to "{self.name}" fails its own check: {verdict}')
        display(Feedback("correct", "Our solution passes the same check."))


def _safely(test: Callable[[Any], bool], answer: Any) -> bool:
    """Whether a test passes; an answer of a type that it cannot handle does not."""
    try:
        return bool(test(answer))
    except Exception:  # the reader may have typed anything
        return False
