"""The diagnosis as a whole: asked, judged, printed."""

from __future__ import annotations

import sys

from tfgpu.config import DoctorConfig
from tfgpu.diagnosis import checks


def run(config: DoctorConfig) -> int:
    """Examines this machine and prints what was found on standard output.

    Args:
        config: What is to be looked at.

    Returns:
        0 when a training can start, 1 when not.
    """
    findings = checks.examine(config, progress=_say)
    if config.json:
        print(checks.as_json(findings))
    else:
        print(checks.as_text(findings))
        problems = sum(finding.status == "problem" for finding in findings)
        print(
            "training can start"
            if not problems
            else f"{problems} problem{'s' if problems > 1 else ''}: training cannot start as asked"
        )
    return 0 if checks.can_train(findings) else 1


def _say(text: str) -> None:
    # Not on standard output, which a script reads.
    if sys.stderr.isatty():
        print(f"{text} ...", file=sys.stderr)
