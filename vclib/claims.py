"""Verdict cards: a claim of the text, held against a number, in front of the reader."""

import html
from dataclasses import dataclass
from typing import Any

import numpy as np
from IPython.display import display

RELATIONS = {"==": "equals", "<=": "is at most", ">=": "is at least"}
STYLE = "border-left:4px solid #009E73;padding:.3em .8em;margin:.6em 0"


class ClaimFailed(AssertionError):
    """A claim of the book does not hold."""


@dataclass(frozen=True, repr=False)
class Card:
    """One verdict, shown as a card in a notebook and as a line of text elsewhere."""

    id: str
    statement: str
    comparison: str
    control: str

    def __repr__(self) -> str:
        return f"[holds] {self.id}: {self.statement} - {self.comparison}. {self.control}"

    def _repr_html_(self) -> str:
        parts = [html.escape(part) for part in (self.statement, self.comparison, self.control)]
        return (
            f'<div class="vc-claim" style="{STYLE}" id="check-{html.escape(self.id)}">'
            f"<strong>✓ Holds.</strong> {parts[0]}"
            f"<br><span>{parts[1]}.</span><br><small>{parts[2]} · <code>{html.escape(self.id)}</code></small></div>"
        )


def check(
    id: str,
    statement: str,
    *,
    measured: Any,
    expected: Any,
    relation: str = "==",
    tolerance: float | None = None,
    standard_error: Any = None,
    control: Any,
    control_label: str,
) -> None:
    r"""Hold a number against a claim, show the verdict, and stop the notebook if the claim fails.

    Two values agree when :math:`|m - e| \le t\,|e|` (``tolerance`` t), or :math:`|m - e| \le 4s`
    (``standard_error`` s). Every check proves that it can fail: the same comparison must reject ``control``.

    Parameters
    ----------
    id
        The name in the claim ledger.
    statement
        The claim, in plain words.
    measured, expected
        Numbers or arrays of one shape.
    relation
        ``"=="``, or ``"<="`` and ``">="`` for bounds.
    tolerance
        Relative, and absolute where ``expected`` is 0. 0 asks for exact equality.
    standard_error
        Of the measurement, for simulations.
    control
        A plausible wrong value of ``measured``.
    control_label
        What the wrong value is.

    Raises
    ------
    ClaimFailed
        If the claim does not hold, or if the comparison does not reject the control.
    ValueError
        If not exactly one of tolerance and standard error is given, or the relation is unknown.

    Examples
    --------
    >>> check("sum", "1 + 1 = 2", measured=1 + 1, expected=2, tolerance=0, control=3, control_label="three")
    [holds] sum: 1 + 1 = 2 - 2 equals 2 exactly. The same test rejects three: 3.
    """
    if (tolerance is None) == (standard_error is None):
        raise ValueError(f"The check {id!r} needs either a tolerance or a standard error.")
    if relation not in RELATIONS:
        raise ValueError(f"The relation {relation!r} is unknown; choose one of {', '.join(RELATIONS)}.")

    def holds(value: Any) -> bool:
        value, target = np.asarray(value, float), np.asarray(expected, float)
        scale = np.where(target == 0, 1.0, np.abs(target))
        slack = tolerance * scale if standard_error is None else 4 * np.asarray(standard_error, float)
        excess = value - target
        fits = {"==": np.abs(excess) <= slack, "<=": excess <= slack, ">=": excess >= -slack}[relation]
        return bool(np.all(fits))  # NaN fits nothing

    error = f" ± {_text(standard_error)} (standard error)" if tolerance is None else _tolerance(tolerance, relation)
    comparison = f"{_text(measured)} {RELATIONS[relation]} {_text(expected)}{error}"
    if not holds(measured):
        raise ClaimFailed(f"{id}: {statement} - but not: {comparison}.")
    if holds(control) or np.isnan(np.asarray(control, float)).any():
        raise ClaimFailed(f"{id}: the check proves nothing, it does not reject {control_label}: {_text(control)}.")
    display(Card(id, statement, comparison, f"The same test rejects {control_label}: {_text(control)}."))


def _tolerance(tolerance: float, relation: str) -> str:
    return (" exactly" if relation == "==" else "") if tolerance == 0 else f" (to {tolerance:g})"


def _text(value: Any) -> str:
    array = np.asarray(value, float)
    if array.size == 1:
        return f"{array.item():.4g}"
    return f"[{', '.join(f'{v:.4g}' for v in array.ravel()[:3])}{', …' if array.size > 3 else ''}]"
