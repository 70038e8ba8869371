"""The first epochs of ResNet-20 on CIFAR-10 in PyTorch, for `resnet20_pytorch.py`.

    PYTHON experiments/pytorch_resnet20.py --job=JOB

PYTHON is an interpreter that has PyTorch and NumPy; nothing else is imported. Prints one line of
JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

MEAN, DEVIATION = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)
PADDING = 4
# A normal distribution that is cut off at two deviations has this deviation.
OF_TRUNCATED = 0.87962566103423978


def network(torch: Any) -> Any:
    """ResNet-20 with shortcuts of option A (He et al., CVPR 2016, section 4.2)."""
    nn, functional = torch.nn, torch.nn.functional

    def convolution(before: int, after: int, stride: int = 1) -> Any:
        layer = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        return layer

    class Block(nn.Module):
        def __init__(self, before: int, after: int, stride: int):
            super().__init__()
            self.first, self.second = convolution(before, after, stride), convolution(after, after)
            self.norms = nn.ModuleList([nn.BatchNorm2d(after), nn.BatchNorm2d(after)])
            self.more, self.stride = after - before, stride

        def forward(self, x: Any) -> Any:
            shortcut = x
            if self.stride > 1:
                sides = (self.more // 2, self.more - self.more // 2)
                shortcut = x[:, :, :: self.stride, :: self.stride]
                shortcut = functional.pad(shortcut, (0, 0, 0, 0, *sides))
            x = functional.relu(self.norms[0](self.first(x)))
            return functional.relu(self.norms[1](self.second(x)) + shortcut)

    widths = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2)]
    widths += [(64, 64, 1)] * 2
    head = nn.Linear(64, 10)
    deviation = (2 / 64) ** 0.5 / OF_TRUNCATED
    nn.init.trunc_normal_(head.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
    nn.init.zeros_(head.bias)
    stem = [convolution(3, 16), nn.BatchNorm2d(16), nn.ReLU()]
    blocks = [Block(*each) for each in widths]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Trains as `job` says.

    Args:
        job: "data", an `.npz` of uint8 `images` (n, 32, 32, 3), integer `labels` (n,), and
            `test_images` and `test_labels` alike; "seed", "epochs", "batch_size",
            "learning_rate", "momentum", "weight_decay" (decoupled, as Keras' is), "threads".

    Returns:
        "parameters", and of each epoch "losses" (the mean over its examples), "accuracies" on the
        test split, and "seconds".
    """
    import torch

    torch.manual_seed(job["seed"])
    torch.set_num_threads(job["threads"])
    data = np.load(job["data"])
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, DEVIATION))

    def tensors(kind: str) -> tuple[Any, Any]:
        images = torch.tensor(data[f"{kind}images"]).permute(0, 3, 1, 2).float()
        return (images - mean) / deviation, torch.tensor(data[f"{kind}labels"]).long()

    images, labels = tensors("")
    test_images, test_labels = tensors("test_")
    padded = torch.nn.functional.pad(images, (PADDING,) * 4, "reflect")
    model = network(torch)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=job["learning_rate"], momentum=job["momentum"]
    )
    result: dict[str, Any] = {"losses": [], "accuracies": [], "seconds": []}
    result["parameters"] = sum(p.numel() for p in model.parameters())
    side, count, size = images.shape[-1], len(images), job["batch_size"]
    window = torch.arange(side)
    for _ in range(job["epochs"]):
        begin, total = time.perf_counter(), 0.0
        model.train()
        for chosen in torch.randperm(count).split(size):
            every = torch.arange(len(chosen))[:, None, None]
            at = window + torch.randint(0, 2 * PADDING + 1, (2, len(chosen), 1))
            x = padded[chosen].permute(0, 2, 3, 1)[every, at[0][:, :, None], at[1][:, None, :]]
            mirrored = torch.rand(len(chosen)) < 0.5
            x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(2), x).permute(0, 3, 1, 2)
            loss = torch.nn.functional.cross_entropy(model(x.contiguous()), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            with torch.no_grad():
                for weight in model.parameters():
                    weight.mul_(1 - job["learning_rate"] * job["weight_decay"])
            optimizer.step()
            total += loss.item() * len(chosen)
        result["seconds"].append(time.perf_counter() - begin)
        result["losses"].append(total / count)
        model.eval()
        with torch.no_grad():
            right = sum(
                int((model(x).argmax(1) == y).sum())
                for x, y in zip(test_images.split(500), test_labels.split(500), strict=True)
            )
        result["accuracies"].append(right / len(test_labels))
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--job", required=True, help="what `train` takes, as JSON")
    print(json.dumps(train(json.loads(parser.parse_args().job))))
