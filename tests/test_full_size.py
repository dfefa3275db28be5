"""The published pairs at their full size: real models, 224 pixels, a few real CIFAR-100 images, a few trials.

On a CPU they take 15 minutes, so they run only where KDSTUDY_FULL_SIZE is set. KDSTUDY_CIFAR100 says where the images
lie, as Parquet.
"""

import json
import os

import numpy as np
import pandas as pd
import pytest
from running import kdstudy, results_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not {"KDSTUDY_CIFAR100", "KDSTUDY_FULL_SIZE"} <= set(os.environ),
                       reason="KDSTUDY_CIFAR100 and KDSTUDY_FULL_SIZE are not both set"),
]
PAIRS = {  # model sizes with a head of 4 classes
    "cifar100": ("CNN → Transformer", 58_152_004, 5_525_188),
    "cifar100-vitb-vitt": ("same architecture", 85_801_732, 5_525_188),
    "cifar100-vitb-resnet18": ("Transformer → CNN", 85_801_732, 11_178_564),
}


@pytest.fixture(scope="module")
def smoke_studies(tmp_path_factory):
    """All three in one folder, one after the other, and what they printed."""
    home = tmp_path_factory.mktemp("full-size")
    source = f"data.source={os.environ['KDSTUDY_CIFAR100']}"
    printed = {name: kdstudy("run", name, "--smoke", "--set", source, cwd=home, timeout=3600).stdout for name in PAIRS}
    return home / "studies", printed


@pytest.mark.parametrize("name", PAIRS)
def test_a_published_pair_runs_from_images_to_an_exported_student(name, smoke_studies, tmp_path):
    studies, printed = smoke_studies
    folder = studies / f"{name}-smoke"
    transfer, teacher, student = PAIRS[name]
    results = results_of(folder)
    sizes = {row["arm"]: row["parameters"] for row in results["rows"]}
    assert results["transfer"] == transfer
    assert sizes == {"teacher": teacher, "baseline": student, "distilled": student}
    assert results["data"]["image_size"] == 224 and len(results["data"]["classes"]) == 4
    views = sorted(folder.glob("teacher_logits-*/views-*.npy"))
    assert len(views) == 3 and np.load(views[0]).shape == (2, 24, 4) and np.load(views[0]).dtype == np.float16
    config = json.loads((folder / "export" / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, 224, 224]
    assert "Traceback" not in printed[name]
    predictions = pd.read_parquet(next(folder.glob("confirm-*/runs/001")) / "test.parquet")
    assert len(predictions) == 24


def test_the_pairs_share_the_students_baseline_and_the_teacher(smoke_studies):
    _, printed = smoke_studies
    shared = {name: [line.split("(taken from ")[1].split(")")[0] for line in text.splitlines() if "taken from" in line]
              for name, text in printed.items()}
    assert shared["cifar100"] == []
    assert shared["cifar100-vitb-vitt"] == 3 * ["cifar100-smoke"]  # baseline, its finalists and its confirmation
    assert shared["cifar100-vitb-resnet18"] == ["cifar100-vitb-vitt-smoke", "cifar100-vitb-vitt-smoke"]
