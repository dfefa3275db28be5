"""Nothing that anybody hands in is unpickled, and no function is called that the study's own settings do not name."""

import argparse
import io
import json
import os
import pickle
import shutil
import subprocess
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from running import KDSTUDY
from synthetic import here, is_one_line, on_study
from torchvision.datasets import cifar

from kdstudy.store.files import write_json
from kdstudy.trainables.baseline import BaselineTrainable
from kdstudy.trainables.data import load
from kdstudy.trainables.settings import DataSettings, ModelSettings, TrainSettings, ViewSettings
from kdstudy.trainables.task import Task

pytestmark = pytest.mark.usefixtures("apart")


class Evil:
    """What makes a folder when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path):
    """A folder that is there as soon as anything has unpickled what the test hands in."""
    return tmp_path / "unpickled"


def objects(mark: Path) -> np.ndarray:
    return np.array([Evil(mark)] * 30, dtype=object)


def test_the_pickle_of_these_tests_does_what_it_should(mark):
    pickle.loads(pickle.dumps(Evil(mark)))
    assert mark.is_dir()


def evil_npz(folder: Path, mark: Path) -> list[str]:
    images, labels = np.zeros((30, 8, 8), np.uint8), np.arange(30) % 3
    np.savez(folder / "a.npz", images=images, labels=labels, class_names=objects(mark))
    return ["plan", "digits", "--set", f"data.source={folder}/a.npz"]


def pickle_as_npz(folder: Path, mark: Path) -> list[str]:
    (folder / "a.npz").write_bytes(pickle.dumps(Evil(mark)))
    return ["plan", "digits", "--set", f"data.source={folder}/a.npz"]


def evil_parquet(folder: Path, mark: Path) -> list[str]:
    """Arrow's extension type that older versions of pyarrow unpickle as soon as they see it."""
    metadata = {b"ARROW:extension:name": b"arrow.py_extension_type",
                b"ARROW:extension:metadata": pickle.dumps(Evil(mark))}
    schema = pa.schema([pa.field("label", pa.int64(), metadata=metadata)])
    pq.write_table(pa.table({"label": [0, 1]}, schema=schema), folder / "train.parquet")
    return ["plan", "digits", "--set", f"data.source={folder}"]


def evil_weights(name: str, protocol: int):
    def make(folder: Path, mark: Path) -> list[str]:
        if protocol:
            torch.save({"weight": Evil(mark)}, folder / name, pickle_protocol=protocol)
        else:
            (folder / name).write_bytes(pickle.dumps({"weight": Evil(mark)}))
        return ["train", "baseline", "digits", "--set", f"student.pretrained={folder}/{name}"]

    return make


def evil_teacher(weights: str, **config):
    def make(folder: Path, mark: Path) -> list[str]:
        torch.save({"weight": Evil(mark)}, folder / weights)
        np.save(folder / "evil.npy", objects(mark))
        config_of = {"architecture": "resnet18", "num_classes": 10,
                     "pretrained_cfg": {"input_size": [1, 8, 8], "mean": [0.5], "std": [0.5]}} | config
        (folder / "config.json").write_text(json.dumps(config_of).replace("HERE", str(folder)))
        return ["train", "distill", "digits", "--set", "teacher.model=", "--set", f"teacher.trained={folder}"]

    return make


def evil_checkpoint(setting: str):
    """As timm's training leaves it, with sound weights of the very model, but for what its arguments hold."""

    def make(folder: Path, mark: Path) -> list[str]:
        net = timm.create_model("resnet18", in_chans=1, num_classes=10, layers=[1, 1, 1, 1], channels=[16, 32, 64, 64])
        torch.save({"state_dict": net.state_dict(), "args": argparse.Namespace(model="resnet18", hook=Evil(mark))},
                   folder / "model_best.pth.tar")
        return ["plan", "digits", "--set", f"{setting}={folder}/model_best.pth.tar"]

    return make


def evil_logits(folder: Path, mark: Path) -> list[str]:
    (folder / "l.safetensors").write_bytes(pickle.dumps(Evil(mark)))
    return ["plan", "digits", "--set", "teacher.model=", "--set", f"teacher.logits={folder}/l.safetensors"]


def evil_cifar(folder: Path, mark: Path) -> list[str]:
    """CIFAR's own files are pickles; torchvision checks their digests before it loads them."""
    place = folder / "cache" / "torchvision" / "cifar-10-batches-py"
    place.mkdir(parents=True)
    for name in ("data_batch_1", "data_batch_2", "test_batch", "batches.meta"):
        (place / name).write_bytes(pickle.dumps(Evil(mark)))
    return ["plan", "digits", "--set", "data.source=cifar10"]


HANDED_IN = {
    "an array of objects": evil_npz, "a pickle called .npz": pickle_as_npz, "an extension type": evil_parquet,
    "weights, .pth": evil_weights("w.pth", 2), "weights, older .pth": evil_weights("w.pth", 0),
    "weights, .bin": evil_weights("w.bin", 2), "weights called .safetensors": evil_weights("w.safetensors", 2),
    "weights called .npz": evil_weights("w.npz", 0),
    "a teacher's .bin": evil_teacher("pytorch_model.bin"),
    "a teacher's weights called .safetensors": evil_teacher("model.safetensors"),
    "a teacher's other checkpoint": evil_teacher("model.safetensors", model_args={"checkpoint_path": "HERE/evil.npy"}),
    "a teacher's other weights": evil_teacher(
        "pytorch_model.bin", model_args={"pretrained_cfg": {"file": "HERE/evil.npy"}, "pretrained": True}),
    "a checkpoint's arguments": evil_checkpoint("teacher.pretrained"),
    "the arguments of a teacher's checkpoint": evil_checkpoint("teacher.trained"),
    "logits": evil_logits, "a data set of torchvision": evil_cifar,
}


@pytest.mark.parametrize("case", HANDED_IN)
def test_nothing_that_is_handed_in_is_unpickled(case, tmp_path, mark, monkeypatch):
    monkeypatch.setenv("KDSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cifar, "download_and_extract_archive", _no_network)
    words = HANDED_IN[case](tmp_path, mark)
    code, _, err = here(*words, "--dir", str(tmp_path / "study"))
    assert code == 2 and is_one_line(err), (code, err)
    assert not mark.exists()


def _no_network(*_, **__):
    raise OSError("no route to host")


def spoil(path: Path, mark: Path, how: str) -> None:
    """Put a pickle in a file's place, in the dress that its readers expect, and no smaller than what was there."""
    content = io.BytesIO()
    if how == "array":
        np.save(content, objects(mark), allow_pickle=True)
    elif how == "torch":
        torch.save({"weight": Evil(mark)}, content)
    else:
        pickle.dump(Evil(mark), content)
    size = path.stat().st_size if path.exists() else 0
    path.write_bytes(content.getvalue().ljust(size, b"\0"))


READERS = {  # of each kind of file in a study
    ".npy": [("logits", "OUT/l.safetensors"), ("train", "distill")],
    ".safetensors": [("export", "OUT"), ("export", "OUT", "--model", "teacher"), ("train", "distill")],
    ".parquet": [("report",), ("pack", "OUT"), ("logits", "OUT/l.safetensors")],
}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("how", ["array", "torch", "pickle"])
def test_nothing_in_a_study_is_unpickled(synthetic_study, tmp_path, mark, kind, how):
    folder = shutil.copytree(synthetic_study, tmp_path / "study")
    for path in folder.rglob(f"*{kind}"):
        spoil(path, mark, how)
    spoil_tunes_own(folder, mark, how)
    for words in READERS[kind]:
        code, _, err = on_study(words, folder, tmp_path / "out")
        assert (code == 0 and not err) or (code in (1, 2) and is_one_line(err)), (words, code, err)
        assert not mark.exists(), words


def spoil_tunes_own(folder: Path, mark: Path, how: str) -> None:
    """The pickles that Ray Tune leaves in a study's .tune, and a file of Optuna's."""
    checkpoint = folder / ".tune" / "000" / "distill-0002" / "checkpoint_000000"
    checkpoint.mkdir(parents=True)
    for path in (folder / "optuna.db", checkpoint.parents[1] / "tuner.pkl", checkpoint.parents[1] / "trainable.pkl",
                 checkpoint.parents[1] / "searcher-state.pkl", checkpoint.parent / "params.pkl",
                 checkpoint / ".tune_metadata", checkpoint / "dict_checkpoint.pkl",
                 checkpoint / "model.safetensors", checkpoint / "optimizer.safetensors"):
        spoil(path, mark, how)
    (checkpoint / "training.json").write_text(json.dumps({"epoch": 2, "seconds": 1.0, "optimizer": {}}))


@pytest.mark.slow
def test_a_study_that_goes_on_unpickles_nothing_of_what_it_was_handed(synthetic_study, tmp_path, mark):
    """A real run, in Ray's workers: a trial that was cut off begins anew instead of loading a pickle."""
    folder = shutil.copytree(synthetic_study, tmp_path / "study")
    spoil_tunes_own(folder, mark, "pickle")
    stage = next(path for path in folder.glob("distill-*") if path.is_dir())
    (stage / "done.json").unlink()
    *events, last = (stage / "record.jsonl").read_text().splitlines()
    cut = json.loads(last) | {"event": "checkpoint", "path": ".tune/000/distill-0002/checkpoint_000000", "epoch": 2}
    (stage / "record.jsonl").write_text("".join(f"{line}\n" for line in (*events, json.dumps(cut))))
    done = subprocess.run([*KDSTUDY, "run", folder, "--until", "distill"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not mark.exists() and "3 complete" in (stage / "done.json").read_text()


def test_cached_images_are_decoded_again_where_the_cache_holds_a_pickle(tmp_path, mark, monkeypatch):
    monkeypatch.setenv("KDSTUDY_CACHE", str(tmp_path / "cache"))
    for seed, (split, name) in enumerate(product(("train", "test"), ("cat", "dog"))):
        folder = tmp_path / "pets" / split / name
        folder.mkdir(parents=True)
        for number, pixels in enumerate(np.random.default_rng(seed).integers(0, 256, (12, 8, 8)).astype(np.uint8)):
            Image.fromarray(pixels).save(folder / f"{number}.png")
    settings = DataSettings(source=str(tmp_path / "pets"))
    first = load(settings)
    cached = list((tmp_path / "cache").rglob("*.npy"))
    assert len(cached) == 4
    for path in cached:
        spoil(path, mark, "array")
    assert (load(settings).train.images == first.train.images).all() and not mark.exists()


def test_a_checkpoint_that_is_a_pickle_is_not_loaded_and_the_trial_begins_anew(tmp_path, mark, images):
    settings = TrainSettings(epochs=2, batch_size=16)
    arguments = {"patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 3}
    model = ModelSettings(model="vit_tiny_patch16_224", args=arguments)
    trainable = object.__new__(BaselineTrainable)  # as Tune makes it in a worker, without Ray
    trainable.task = Task(train=images, validation=images, classes=4, image_size=8, model=model, training=settings,
                          views=ViewSettings(), report_every=1)
    for path in ("model.safetensors", "optimizer.safetensors", ".tune_metadata", "dict_checkpoint.pkl"):
        spoil(tmp_path / path, mark, "pickle")
    (tmp_path / "training.json").write_text(json.dumps({"epoch": 1, "seconds": 1.0, "optimizer": {}}))
    trainable.reset_config({"parameters": {"lr": 1e-3}, "seed": 0, "view_seed": 0, "checkpoint": str(tmp_path)})
    assert trainable.failure is None and trainable.training.epoch == 0 and not mark.exists()
    assert trainable.step()["epoch"] == 1


def test_a_folder_that_was_handed_over_does_not_say_where_the_study_lives(synthetic_study, tmp_path):
    folder = shutil.copytree(synthetic_study, tmp_path / "study")
    for uri in ("memory://elsewhere/study", "file:///elsewhere", "nofs://x/y", 3, str(folder)):
        write_json(folder / ".remote.json", {"uri": uri, "objects": {}})
        code, out, err = here("status", str(folder))
        assert code == 0 and not err and str(folder) in out, (uri, err)


def evil_module(folder: Path, mark: Path) -> str:
    """A module with a function for a model, which leaves a mark as soon as it is imported."""
    name = f"evil_{mark.parent.name}"
    (folder / f"{name}.py").write_text(f"import os\nos.mkdir({str(mark)!r})\ndef make(**arguments):\n    pass\n")
    return f"{name}:make"


def test_a_function_is_called_only_where_the_settings_name_it(synthetic_study, tmp_path, mark, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    function, folder = evil_module(tmp_path, mark), shutil.copytree(synthetic_study, tmp_path / "study")
    done = next(folder.glob("teacher-*/done.json"))
    content = json.loads(done.read_text())
    content["members"][0]["model"]["model"] = function
    write_json(done, content)
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    given = evil_teacher("model.safetensors", architecture=function)(teacher, mark)
    for words in (("train", "distill", folder), ("export", folder, tmp_path / "out", "--model", "teacher"), given):
        code, _, err = here(*map(str, words))
        assert code == 2 and is_one_line(err) and "set teacher.function" in err and not mark.exists(), err
    here("plan", "digits", "--set", f"student.model={function}")
    assert mark.exists()  # by design: what the settings themselves name is the user's own code
