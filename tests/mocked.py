"""Sets of TFDS with fake examples, as if they had been prepared."""

import tensorflow_datasets as tfds

from tfgpu.data import tfds_source


def mocked(
    name,
    root,
    count,
    *,
    splits=("train", "test"),
    version="1.0.0",
    change=lambda example: example,
):
    """Lays the fake examples of a TFDS set out as a prepared one, of the set's own features.

    `change` makes one what the features can hold, where it is not.
    """
    with tfds.testing.mock_data(num_examples=count):
        builder = tfds.builder(name, data_dir=str(root / "none"))
        rows = [change(row) for row in tfds.as_numpy(builder.as_dataset(split="train"))]
    info = builder.info

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=info.features, supervised_keys=info.supervised_keys
        )

    made = type(
        "Mocked",
        (tfds.core.GeneratorBasedBuilder,),
        {
            "name": name.partition("/")[0],
            "VERSION": tfds.core.Version(version),
            "_info": _info,
            "_split_generators": lambda self, manager: {
                split: iter(enumerate(rows)) for split in splits
            },
            "_generate_examples": lambda self: iter(()),
            "__module__": __name__,
        },
        skip_registration=True,
    )
    with tfds_source.quiet():
        made(data_dir=str(root)).download_and_prepare()
    return rows
