"""Random cases train as with stock Keras, on one and on two replicas; the harness finds faults.

More, by any seed: `python -m tests.differential --help`.
"""

import json

import keras
import pytest

from . import builders, cases, compare, rules

SEED, CASES = 0, 24

pytestmark = pytest.mark.differential


@pytest.mark.parametrize("index", range(CASES))
def test_trains_as_stock_keras(mirrored2, index):
    case = cases.generate(SEED, index)
    try:
        comparisons = compare.check(case, {1: None, 2: mirrored2}, builders.tfgpu_kind())
    finally:
        compare.forget()
    differ = [c for c in comparisons if c.verdict in ("differs", "invalid")]
    lines = [
        f"{c.verdict}, replicas {c.replicas}: {quantity}: {text}"
        for c in differ
        for quantity, text in c.differences
    ]
    repeat = f"python -m tests.differential --case '{case.to_json()}'"
    assert not differ, "\n".join([*lines, repeat])


@pytest.mark.parametrize("fault", compare.FAULTS)
def test_a_fault_is_found(tensorflow, fault):
    # One whose fault shows: weights, more than one epoch to train, a rate that is followed.
    plain = {
        "network": "dense",
        "normalization": "none",
        "dropout": 0.0,
        "optimizer": "sgd",
        "learning_rate": 0.05,
        "optimizer_options": {},
        "schedule": "none",
        "weights": "rows",
        "validation": "none",
        "validation_rows": 0,
        "steps_per_execution": 1,
        "jit_compile": False,
        "run_eagerly": False,
        "callback": "none",
        "second_round": False,
    }
    case = next(
        case
        for case in (cases.generate(SEED, index) for index in range(1000))
        if case.network == "dense" and case.reduction and case.feeding == "arrays"
    )
    case = cases.Case.from_json(json.dumps(json.loads(case.to_json()) | plain))
    (same,) = compare.check(case, {1: None}, kind=None)
    (faulty,) = compare.check(case, {1: None}, kind=None, fault=fault)
    assert (same.verdict, faulty.verdict) == ("same", "differs")


def test_a_case_is_repeated_from_its_index_and_from_its_json():
    for index in range(200):
        case = cases.generate(3, index)
        assert cases.generate(3, index) == case
        assert cases.Case.from_json(case.to_json()) == case


def test_rules_leave_out_at_most_a_fifth():
    drawn = [cases.generate(SEED, index) for index in range(2000)]
    for replicas in (1, 2):
        out = sum(rules.excluded(case, replicas) is not None for case in drawn)
        assert out <= len(drawn) / 5
    for rule in rules.RULES:
        assert any(rule.applies(case, 2) for case in drawn), rule.name


def test_every_network_and_optimizer_is_drawn():
    drawn = [cases.generate(SEED, index) for index in range(2000)]
    assert {case.network for case in drawn} == set(cases.NETWORKS)
    assert {case.optimizer for case in drawn} == set(cases.OPTIMIZERS)
    assert {case.loss for case in drawn} == {name for of in cases.LOSSES.values() for name in of}


def test_kinds_are_the_classes_that_users_name():
    import tfgpu

    assert builders.tfgpu_kind() == (tfgpu.Model, tfgpu.Sequential)
    assert builders.STOCK == (keras.Model, keras.Sequential)
