"""What is different from Keras on purpose is written down where users find it."""

from pathlib import Path

from . import rules

PAGE = Path(__file__).parents[2] / "docs" / "differences.md"


def test_every_rule_of_the_comparison_with_keras_is_in_the_table():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    named = {row.split("|")[1].strip() for row in rows}
    assert {rule.name for rule in rules.RULES} - named == set()
