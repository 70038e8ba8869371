"""The version of Keras, for what cannot hold on all of them."""

import keras

KERAS = tuple(int(part) for part in keras.__version__.split(".")[:2])
