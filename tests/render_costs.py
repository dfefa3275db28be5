"""What rendering augmented views costs, beside the training that uses them.

ViT-Tiny takes steps in fp32 on batches of 224 px images, stored at 256 px, on one thread. Between two steps, each
setting of [views] renders a batch, as for a data set that is too large to render ahead, and its time is compared with
theirs. On a CPU this is the time on the processor, so that other work on the machine counts less.

    python tests/render_costs.py               # some minutes on a CPU; where there is a GPU, it measures that
    python tests/render_costs.py --stored 32   # as for CIFAR
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from kdstudy.trainables import views as views_module
from kdstudy.trainables.device import default_device
from kdstudy.trainables.evaluator import Evaluator
from kdstudy.trainables.loop import Training
from kdstudy.trainables.models import build
from kdstudy.trainables.settings import ModelSettings, TrainSettings, ViewSettings
from kdstudy.trainables.views import Views

SIZE, BATCH, IMAGES, CLASSES = 224, 16, 256, 100
SETTINGS = {
    "plain": {},
    "shift, flip": {"shift": 4, "flip": True},
    "scale": {"scale": 0.2},
    "mixup": {"mixup": 0.5},
    "crop_scale": {"crop_scale": (0.08, 1.0)},
    "randaugment": {"auto_augment": "randaugment"},
    "trivialaugment": {"auto_augment": "trivialaugment"},
    "brightness": {"brightness": 0.4},
    "contrast": {"contrast": 0.4},
    "saturation": {"saturation": 0.4},
    "hue": {"hue": 0.1},
    "erase, noise": {"erase": 0.25},
    "erase, constant": {"erase": 0.25, "erase_fill": "constant"},
    "cutmix": {"cutmix": 1.0},
    "light": {"augment": "light"},
    "timm": {"augment": "timm"},
    "deit": {"augment": "deit"},
}


def images(stored: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images, (N, 3, stored, stored) uint8, and labels."""
    random = np.random.default_rng(0)
    coarse = torch.from_numpy(random.integers(0, 256, (IMAGES, 3, 16, 16))).float() / 255
    pixels = (views_module.resize(coarse, stored) * 255).byte()
    return pixels.to(device), (torch.arange(IMAGES) % CLASSES).to(device)


def training(pixels: torch.Tensor, labels: torch.Tensor) -> Training:
    """A training of ViT-Tiny, whose steps are timed without rendering."""
    settings = ModelSettings(model="vit_tiny_patch16_224")
    model = build(settings, classes=CLASSES, channels=3, image_size=SIZE, seed=0)
    train = TrainSettings(epochs=1000, batch_size=BATCH, precision="fp32")
    plain = Views(pixels[:BATCH], labels[:BATCH], ViewSettings(), view_seed=0, count=1, size=SIZE)
    return Training(model, plain, Evaluator(pixels[:1], labels[:1], SIZE), train, lr=1e-4, seed=0)


def seconds(work: Callable[[], object]) -> float:
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    started = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - started


def measure(stored: int, names: list[str], repeats: int) -> None:
    """Print for each setting the median time for an image, and the median of its ratio to the steps around it."""
    pixels, labels = images(stored, default_device())
    model = training(pixels, labels)
    model.train.batch(0, torch.arange(BATCH))  # rendered ahead, so that a step is a step alone
    views_module.RENDER_AHEAD_BYTES = 0
    made = {name: Views(pixels, labels, ViewSettings(**SETTINGS[name]), view_seed=1, count=1000, size=SIZE)
            for name in names}
    steps, times, shares = [], {name: [] for name in names}, {name: [] for name in names}
    order, _ = np.random.default_rng(1), seconds(model.train_epoch)  # the first of everything warms up
    for repeat in range(repeats + 1):
        indices = torch.from_numpy(order.permutation(IMAGES)[:BATCH]).to(pixels.device)
        before, took = seconds(model.train_epoch), {}
        for name, views in made.items():
            views.batch(repeat, indices[:1])  # draws the view, which happens once in an epoch
            took[name] = seconds(lambda views=views, repeat=repeat, indices=indices: views.batch(repeat, indices))
        step = (before + seconds(model.train_epoch)) / 2
        for name in made if repeat else ():
            times[name].append(took[name])
            shares[name].append(took[name] / step)
        steps.append(step)
    print(f"a step: {1000 * statistics.median(steps) / BATCH:.1f} ms an image\n\n"
          "| setting | rendering, ms an image | share of a step |\n|---|---:|---:|")
    for name in names:
        print(f"| {name} | {1000 * statistics.median(times[name]) / BATCH:.2f} "
              f"| {100 * statistics.median(shares[name]):.1f} % |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stored", type=int, default=256, help="pixels of the stored images")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="SETTING")
    parser.add_argument("--repeats", type=int, default=11, help="batches for each setting")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measure(arguments.stored, arguments.only, arguments.repeats)


if __name__ == "__main__":
    main()
