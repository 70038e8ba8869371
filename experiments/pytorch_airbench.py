"""The recipe of `airbench94.py` in PyTorch, on a CPU or a GPU, for comparisons.

    PYTHON experiments/pytorch_airbench.py --data=DATA.npz --device=cuda --precision=float16

PYTHON is an interpreter that has PyTorch and NumPy; nothing else is imported. DATA.npz holds uint8
`images` (n, 32, 32, 3) and integer `labels` (n,), and `test_images` and `test_labels` alike:
`airbench94_pytorch.py --write_data=DATA.npz` writes the same images that tfgpu trains on. Prints
one line of JSON a training; those of an H200 are in `experiments/results/pytorch_airbench.jsonl`
(PyTorch 2.11, beside other work: the seconds say nothing).
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
VIEW_WEIGHTS = (0.25, 0.25, 0.125, 0.125, 0.125, 0.125)


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Trains as `job` says.

    Args:
        job: "data", an `.npz` of images and labels; "epochs" of the schedule, "batch_size",
            "steps", "seed", "test" (how many images), "width", and "products" (the dtype of
            Muon's). With "batches" and "weights", files of `Curve.fixed_inputs`, these are taken
            in place of random ones; with "end", some of the last weights go to that file. "device"
            ("cpu") and "precision" ("float32", or "float16" for weights and activations, with
            batch normalisation in float32, as the record has it).

    Returns:
        "losses" of the steps, "accuracy" on the test split without an average over views,
        "accuracy_views" with it, and "seconds" of the training alone.
    """
    import torch
    import torch.nn.functional as F

    torch.manual_seed(job["seed"])
    device = torch.device(job.get("device", "cpu"))
    dtype = getattr(torch, job.get("precision", "float32"))
    torch.backends.cudnn.benchmark = True
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    data = np.load(job["data"])
    images = torch.tensor(data["images"], device=device).permute(0, 3, 1, 2)
    labels = torch.tensor(data["labels"], device=device).long()
    mean, deviation = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (MEAN, DEVIATION))
    size, count = job["batch_size"], len(images)
    per_epoch = count // size
    total, bias_total = job["epochs"] * per_epoch, 3 * per_epoch

    def normalised(x: Any) -> Any:
        return ((x.float() / 255 - mean) / deviation).to(dtype, memory_format=layout)

    widths = [24, *(round(w * job["width"]) for w in (64, 256, 256))]
    filters, shifts, scales, statistics_ = [], [], [], []
    for before, after in zip(widths, widths[1:], strict=False):
        for channels in (before, after):
            weight = torch.empty(after, channels, 3, 3)
            bound = (9 * channels) ** -0.5
            torch.nn.init.uniform_(weight, -bound, bound)
            torch.nn.init.dirac_(weight[:channels])
            filters.append(weight.to(device, dtype, memory_format=layout))
            shifts.append(torch.zeros(after, device=device))
            # Its gradient on a GPU wants one, which is not trained.
            scales.append(torch.ones(after, device=device))
            statistics_.append(
                (torch.zeros(after, device=device), torch.ones(after, device=device))
            )
    head = torch.empty(10, widths[-1]).uniform_(-(widths[-1] ** -0.5), widths[-1] ** -0.5)
    head /= head.std()
    head = head.to(device, dtype)
    bias = torch.empty(24).uniform_(-(12**-0.5), 12**-0.5).to(device, dtype)
    first = (images[:5000].float() / 255 - mean) / deviation
    first = first.unfold(2, 2, 1).unfold(3, 2, 1)
    first = first.permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
    values, vectors = torch.linalg.eigh(first.T @ first / len(first))
    whitening = (vectors / torch.sqrt(values + 5e-4)).T.reshape(12, 3, 2, 2)
    whitening = torch.cat([whitening, -whitening]).to(dtype)
    if "weights" in job:
        given = np.load(job["weights"])
        kernels = [f"group{g}_conv{c}/kernel" for g in (1, 2, 3) for c in (1, 2)]
        for weight, name in zip(filters, kernels, strict=True):
            weight.copy_(torch.tensor(given[name]).permute(3, 2, 0, 1))
        head.copy_(torch.tensor(given["head/kernel"]).T)
        bias.copy_(torch.tensor(given["whiten/bias"]))
        whitening = torch.tensor(given["whiten/kernel"]).permute(3, 2, 0, 1)
    trained = [bias, head, *filters, *shifts]
    for each in trained:
        each.requires_grad_()

    def logits_of(x: Any, *, training: bool, with_bias: bool = True) -> Any:
        x = F.gelu(F.conv2d(x, whitening, bias if with_bias else bias.detach()))
        for number, (weight, shift, scale, moving) in enumerate(
            zip(filters, shifts, scales, statistics_, strict=True)
        ):
            x = F.conv2d(x, weight, padding=1)
            x = F.max_pool2d(x, 2) if number % 2 == 0 else x
            x = F.batch_norm(x, *moving, scale, shift, training, momentum=0.4, eps=1e-12)
            x = F.gelu(x)
        x = F.max_pool2d(x, 3).flatten(1)
        return F.linear(x, head) / x.shape[1]

    def fixed_groups() -> list[dict[str, Any]]:
        decay = 2e-6 * size
        of = {"bias": ([bias], 0.053), "shifts": (shifts, 0.053), "head": ([head], 0.67)}
        return [
            {"params": params, "lr": rate, "start": rate, "weight_decay": decay / rate}
            for params, rate in of.values()
        ]

    sgd = torch.optim.SGD(fixed_groups(), lr=0.1, momentum=0.85, nesterov=True)
    momenta = [torch.zeros_like(weight) for weight in filters]

    @torch.no_grad()
    def muon(rate: float) -> None:
        for weight, momentum in zip(filters, momenta, strict=True):
            momentum.mul_(0.6).add_(weight.grad)
            # (out, in, height, width), whatever the layout in memory.
            x = (weight.grad + 0.6 * momentum).flatten(1).to(getattr(torch, job["products"]))
            x = x / (x.norm() + 1e-7)
            tall = x.shape[0] > x.shape[1]
            x = x.T if tall else x
            for _ in range(3):
                gram = x @ x.T
                x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
            x = x.T if tall else x
            weight.mul_(len(weight) ** 0.5 / weight.norm())
            weight.sub_(rate * x.to(dtype).reshape(weight.shape))
            weight.grad = None

    def own_batches() -> Any:
        """Shuffled, mirrored in every second epoch, shifted by up to two pixels."""
        halves = torch.rand(count, device=device) < 0.5
        rows = torch.arange(32, device=device)
        padded = F.pad(images.float(), (2, 2, 2, 2), "reflect")
        for epoch in range(job["epochs"]):
            mirrored = halves ^ bool(epoch % 2)
            order = torch.randperm(count, device=device)[: per_epoch * size].view(-1, size)
            for chosen in order:
                shift = torch.randint(0, 5, (2, size, 1), device=device)
                at = [rows + each for each in shift]
                x = padded[chosen].permute(0, 2, 3, 1)
                every = torch.arange(size, device=device)
                x = x[every[:, None, None], at[0][:, :, None], at[1][:, None, :]]
                x = torch.where(mirrored[chosen].view(-1, 1, 1, 1), x.flip(2), x)
                yield x.permute(0, 3, 1, 2), labels[chosen]

    if "batches" in job:
        stored = np.load(job["batches"])
        batches = (
            (torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(y).long())
            for x, y in zip(stored["images"], stored["labels"], strict=True)
        )
    else:
        batches = own_batches()

    losses, begin = [], time.perf_counter()
    for step, (x, y) in zip(range(job["steps"]), batches, strict=False):
        logits = logits_of(normalised(x), training=True, with_bias=step < bias_total)
        loss = F.cross_entropy(logits, y, label_smoothing=0.2, reduction="sum")
        loss.backward()
        losses.append(loss.detach())
        for number, group in enumerate(sgd.param_groups):
            group["lr"] = group["start"] * (1 - step / (total if number else bias_total))
        sgd.step()
        muon(0.24 * (1 - step / total))
        sgd.zero_grad(set_to_none=True)
    losses = [loss.item() / size for loss in losses]
    seconds = time.perf_counter() - begin

    right = np.zeros(2, int)
    with torch.no_grad():
        test, answers = (data[name][: job["test"]] for name in ("test_images", "test_labels"))
        for at in range(0, len(test), 500):
            x = normalised(torch.tensor(test[at : at + 500], device=device).permute(0, 3, 1, 2))
            padded = F.pad(x, (1, 1, 1, 1), "reflect")
            views = [x, padded[:, :, :32, :32], padded[:, :, 2:, 2:]]
            found = [
                logits_of(way.contiguous(memory_format=layout), training=False).float()
                for view in views
                for way in (view, view.flip(3))
            ]
            averaged = sum(w * each for w, each in zip(VIEW_WEIGHTS, found, strict=True))
            for number, each in enumerate((found[0], averaged)):
                chosen = each.argmax(1).cpu().numpy()
                right[number] += int((chosen == answers[at : at + 500]).sum())
        if "end" in job:
            end = {
                "head/kernel": head.T,
                "whiten/bias": bias,
                "group1_conv1/kernel": filters[0].permute(2, 3, 1, 0),
                "group3_conv2/kernel": filters[-1].permute(2, 3, 1, 0),
                "group2_norm1/beta": shifts[2],
                "group2_norm1/moving_variance": statistics_[2][1],
            }
            np.savez(job["end"], **{name: value.cpu().numpy() for name, value in end.items()})
    accuracy, accuracy_views = (right / max(1, len(test))).tolist()
    return {
        "losses": losses,
        "accuracy": accuracy,
        "accuracy_views": accuracy_views,
        "seconds": seconds,
    }


def main() -> None:
    """Trains as a job says, or whole trainings of several seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--job", help="what `train` takes, as JSON")
    parser.add_argument("--data")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=("float32", "float16"))
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch_size", type=int, default=2000)
    parser.add_argument("--test", type=int, default=10_000, help="test images")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(train(json.loads(options.job))))
        return
    if not options.data:
        parser.error("--data=FILE.npz is needed")
    steps = options.epochs * (len(np.load(options.data)["labels"]) // options.batch_size)
    for seed in range(options.seeds):
        job = {
            name: getattr(options, name)
            for name in ("data", "device", "precision", "width", "epochs", "batch_size", "test")
        }
        result = train(job | {"products": "bfloat16", "steps": steps, "seed": seed})
        del result["losses"]
        del job["data"]
        print(json.dumps({"seed": seed, **job, **result}), flush=True)


if __name__ == "__main__":
    main()
