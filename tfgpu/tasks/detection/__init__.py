"""Detection: an image -> boxes around what is on it, each with a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tfgpu.models.detection_loss import CenterLoss, VOCMeanAP
from tfgpu.models.detector import STRIDE
from tfgpu.tasks.detection.augmentation import AUGMENT
from tfgpu.tasks.detection.predictor import BoxPredictor
from tfgpu.tasks.detection.reading import choose, most_detections, read
from tfgpu.tasks.detection.report import BoxReport
from tfgpu.tasks.detection.serving import serve
from tfgpu.tasks.task import DataSpec, Task


def _metrics(spec: DataSpec) -> Sequence[Any]:
    return [VOCMeanAP(num_classes=spec.num_classes, count=most_detections(spec))]


def _outputs(spec: DataSpec) -> Any:
    assert spec.image_shape is not None
    height, width, _ = spec.image_shape
    return (-(-height // STRIDE), -(-width // STRIDE), spec.num_classes + 4)


def _recipe(spec: DataSpec, num_examples: int) -> Mapping[str, Any]:
    return {
        "optimizer": "adamw",
        "learning_rate": 2e-3,
        "weight_decay": 0.05,
        # Few images are few updates.
        "batch_size": 4 if num_examples < 200 else 8 if num_examples < 1000 else 16,
        # As many images as 400 of generated shapes take to be learnt, however few there are.
        "epochs": min(max(8000 // num_examples, 20), 60),
        "augment": "crop,flip,resize,color_jitter",
    }


TASK = Task(
    name="detection",
    read=read,
    models={"centernet": "tfgpu.models.detector:centernet"},
    loss=lambda spec, settings: CenterLoss(spec.num_classes),
    metrics=_metrics,
    objective="voc_map",
    maximize=True,
    unit="images",
    choose=choose,
    augment=AUGMENT,
    outputs=_outputs,
    recipe=_recipe,
    settings=frozenset({"image_size"}),
    options={"max_boxes": 0},
    report=BoxReport,
    predict=BoxPredictor,
    serve=serve,
)
