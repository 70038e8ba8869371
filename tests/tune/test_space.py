"""The space of a search: what it declares, and that bad ones are found before the first trial."""

import pytest

from tfgpu.errors import RequestError
from tfgpu.train import recipe
from tfgpu.train.settings import TrainSettings


@pytest.fixture(scope="module")
def space_of(tensorflow):
    from tfgpu.tune.space import Space

    return lambda function: Space("mine.py", function)


def no_limits(settings):
    """Data and devices that refuse nothing."""


def test_the_default_space_fits_the_default_job(tensorflow):
    from tfgpu.tune.space import Space

    def resolve(settings):
        return recipe.resolve(settings, num_examples=1294, replicas=1, on_gpu=False)

    Space.load("default").check(TrainSettings(), resolve)


@pytest.mark.parametrize(
    ("examples", "replicas", "batches"),
    [(300, 2, [32, 64, 128, 256]), (100, 1, [32, 64]), (21, 2, [20])],
)
def test_the_default_space_fits_a_small_training_set(tensorflow, examples, replicas, batches):
    from tfgpu.tasks.parts.spaces import for_examples, of_lenet
    from tfgpu.tune.space import Space

    def resolve(settings):
        return recipe.resolve(settings, num_examples=examples, replicas=replicas, on_gpu=False)

    space = Space.load("default", for_examples(of_lenet, examples, replicas=replicas))
    space.check(TrainSettings(), resolve)
    assert space.values()["batch_size"] == batches


def test_settings_of_a_trial_are_the_fixed_ones_with_the_changes(space_of):
    space = space_of(lambda hp: {"learning_rate": hp.Float("rate", 0.1, 1.0)})
    hp = space.hyperparameters.copy()
    hp.values["rate"] = 0.5
    settings = space.settings(TrainSettings(epochs=7), hp)
    assert (settings.epochs, settings.learning_rate) == (7, 0.5)


def test_conditions_under_conditions_are_explored(space_of):
    def function(hp):
        found = {"optimizer": hp.Choice("optimizer", ["sgd", "adam"])}
        with hp.conditional_scope("optimizer", ["adam"]):
            if found["optimizer"] == "adam":
                found["lr_schedule"] = hp.Choice("schedule", ["constant", "cosine"])
                with hp.conditional_scope("schedule", ["cosine"]):
                    if found["lr_schedule"] == "cosine":
                        found["warmup_epochs"] = hp.Float("warmup", 0.0, 1.0)
        return found

    names = {hp.name for hp in space_of(function).hyperparameters.space}
    assert names == {"optimizer", "schedule", "warmup"}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda hp: {"learning_rat": hp.Float("r", 0.1, 1.0)}, "did you mean 'learning_rate'"),
        (lambda hp: {"seed": hp.Int("s", 0, 3)}, "'seed' is the same for all trials"),
        (lambda hp: {"batch_size": hp.Choice("b", [32, 0])}, r"--batch_size=0.*with b=0"),
        (lambda hp: {"momentum": hp.Float("m", 0.5, 1.0)}, r"--momentum=1.0.*with m=1"),
        (
            lambda hp: {
                "optimizer": hp.Choice("o", ["sgd", "adam"]),
                "momentum": hp.Choice("m", [0.0, 0.9]),
            },
            r"--momentum=0.9 has no meaning for --optimizer=adam",
        ),
    ],
    ids=["unknown", "fixed", "value", "end of a range", "combination"],
)
def test_what_config_refuses_is_found_by_check(space_of, function, message):
    with pytest.raises(RequestError, match=message):
        space_of(function).check(TrainSettings(), no_limits)


def test_what_data_refuse_is_found_by_check(space_of):
    space = space_of(lambda hp: {"batch_size": hp.Choice("b", [32, 48])})

    def resolve(settings):
        return recipe.resolve(settings, num_examples=40, replicas=1, on_gpu=False)

    with pytest.raises(RequestError, match=r"mine.py: --batch_size=48 is larger .*with b=48"):
        space.check(TrainSettings(), resolve)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda hp: {"epochs": 3}, "declares no hyperparameter"),
        (lambda hp: hp.Int("a", 1, 2), "must return a dict of settings, not a int"),
        (lambda hp: {}["nothing"], "KeyError"),
    ],
    ids=["none", "no dict", "raises"],
)
def test_a_function_that_is_no_space_is_refused(space_of, function, message):
    with pytest.raises(RequestError, match=message):
        space_of(function)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("def spaces(hp): return {}", "must define a function space"),
        ("def space(hp:\n", r"mine.py:1: SyntaxError"),
        ("def space(hp):\n    return {'epochs': hp.Int('n', 1, 'many')}\n", r"mine.py:2: "),
    ],
    ids=["missing", "no function", "syntax", "raises"],
)
def test_a_file_that_is_no_space_is_refused(tensorflow, tmp_path, text, message):
    from tfgpu.tune.space import Space

    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RequestError, match=message):
        Space.load(str(path))


def test_a_comment_makes_no_other_search_and_a_range_does(tensorflow, tmp_path):
    from tfgpu.tune.space import Space

    path = tmp_path / "mine.py"
    text = "def space(hp):\n    return {'momentum': hp.Float('m', 0.1, 0.9)}\n"
    path.write_text(text)
    before = Space.load(str(path)).fingerprint()
    path.write_text("# why\n" + text)
    assert Space.load(str(path)).fingerprint() == before
    path.write_text(text.replace("0.9", "0.8"))
    assert Space.load(str(path)).fingerprint() != before


def test_another_use_of_the_same_hyperparameters_is_another_search(space_of):
    one = space_of(lambda hp: {"momentum": hp.Float("m", 0.1, 0.5)})
    other = space_of(lambda hp: {"momentum": 2 * hp.Float("m", 0.1, 0.4) - 0.1})
    third = space_of(lambda hp: {"momentum": hp.Float("m", 0.1, 0.5) / 2})
    assert one.fingerprint() != other.fingerprint()
    assert one.fingerprint()["m"] == third.fingerprint()["m"]
    assert one.fingerprint() != third.fingerprint()
