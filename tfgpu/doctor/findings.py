"""The lines of the diagnosis: each ok, a warning or a problem, with what fixes it.

A problem keeps a training from starting as it was asked for. An unusable GPU is one, unless
`--devices` names the CPU: TensorFlow would silently train on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis.

    Attributes:
        section: The section that it belongs to.
        item: What was checked.
        status: What it means for a training.
        value: What was found.
        remedy: What fixes it; empty when there is nothing to fix.
    """

    section: str
    item: str
    status: Status
    value: str
    remedy: str = ""


class Section(list[Finding]):
    """The findings of one section of the diagnosis."""

    def __init__(self, name: str):
        super().__init__()
        self._name = name

    def add(self, item: str, status: Status, value: str, remedy: str = "") -> None:
        """Adds a finding."""
        self.append(Finding(self._name, item, status, value, remedy))


def can_train(findings: Sequence[Finding]) -> bool:
    """Whether a training can start as it was asked for."""
    return all(finding.status != "problem" for finding in findings)


def as_text(findings: Sequence[Finding]) -> str:
    """Formats the findings: a line each, and below it what fixes it."""
    wide = max(len(finding.item) for finding in findings)
    marks = {"ok": "ok     ", "warning": "WARNING", "problem": "PROBLEM"}
    lines = []
    section = ""
    for finding in findings:
        if finding.section != section:
            section = finding.section
            lines.append(section)
        lines.append(f"  {marks[finding.status]}  {finding.item:<{wide}}  {finding.value}")
        if finding.remedy:
            lines.append(f"  {'':7}  {'':<{wide}}  -> {finding.remedy}")
    return "\n".join(lines)
