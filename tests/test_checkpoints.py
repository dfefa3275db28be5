"""Files of weights as training programs leave them: to start from, and as a teacher that is already trained."""

import argparse
import json
import pickle
import struct
import types
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import tomli_w
import torch
from running import kdstudy
from safetensors.torch import save_file
from synthetic import SHORT, here, is_one_line, write_finished
from timm.models import save_for_hf
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from kdstudy.config.load import load_study
from kdstudy.stages import doubts
from kdstudy.store.storage import Storage
from kdstudy.study import Study
from kdstudy.trainables import models
from kdstudy.trainables.data import load
from kdstudy.trainables.models.checkpoint import RefusedError, read_state
from kdstudy.trainables.settings import DataSettings, ModelSettings
from kdstudy.trainables.views import resize
from kdstudy.tune.pipeline import teacher_predictions

NET = {"layers": [1, 1, 1, 1], "channels": [8, 16, 32, 32]}
SIZE = 16
TRAINED_WITH = {"mean": 0.3, "std": 0.4}  # and not with what timm's configuration of a ResNet says
SHAPE = {"classes": 10, "channels": 1, "image_size": 8}

pytestmark = pytest.mark.usefixtures("apart")


@pytest.fixture(scope="module")
def digits():
    return load(DataSettings(source="digits", validation=0.2, test=0.2))


def normalised(images, mean, std):
    """As anybody would feed digits to a timm model."""
    return (resize(torch.from_numpy(images).float() / 255, SIZE) - mean) / std


@pytest.fixture(scope="module")
def net(digits):
    """A small ResNet that a few epochs have taught digits, by a loop that knows nothing of kdstudy."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = timm.create_model("resnet18", num_classes=10, in_chans=1, **NET)
    images, labels = normalised(digits.train.images, **TRAINED_WITH), torch.from_numpy(digits.train.labels)
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for _ in range(4):
        for part in torch.randperm(len(images)).split(64):
            loss = functional.cross_entropy(net(images[part]), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


@torch.no_grad()
def predictions_of(net, images, mean, std):
    return net(normalised(images, mean, std)).argmax(1).numpy()


def timms_checkpoint(net, folder, ema=None) -> Path:
    """What timm's train.py leaves behind: weights, optimizer, and its arguments as an argparse.Namespace."""
    args = argparse.Namespace(model="resnet18", lr=0.1, mean=[0.3], opt_betas=None, amp=False, log_interval=50)
    saver = CheckpointSaver(net, torch.optim.AdamW(net.parameters()), args, ema, checkpoint_dir=str(folder))
    saver.save_checkpoint(3, metric=91.5)
    return folder / "model_best.pth.tar"


# -- where in a file the weights are ----------------------------------------------------------------------------------


def moved(state, by):
    return {name: value + by if value.is_floating_point() else value for name, value in state.items()}


LAYOUTS = {  # of a file, and where in it the weights are
    "the state dict itself": (lambda state: state, None),
    "state_dict": (lambda state: {"state_dict": state, "epoch": 3}, "state_dict"),
    "model": (lambda state: {"model": state, "args": argparse.Namespace(lr=1), "scaler": {"scale": 2.0}}, "model"),
    "state_dict_ema": (lambda state: {"state_dict": moved(state, 1), "state_dict_ema": state}, "state_dict_ema"),
    "model_ema": (lambda state: {"model": moved(state, 1), "model_ema": state}, "model_ema"),
    "an empty state_dict_ema": (lambda state: {"state_dict": state, "state_dict_ema": None}, "state_dict"),
    "nested": (lambda state: {"state_dict": {"model": state}}, "state_dict.model"),
}
PREFIXES = ("", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module.")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("file", ["w.pth", "w.pt", "w.bin", "w.pth.tar"])
def test_weights_are_found_wherever_programs_put_them(layout, file, tmp_path):
    wrap, part = LAYOUTS[layout]
    state = timm.create_model("resnet18", **NET).state_dict()
    for prefix in PREFIXES:
        torch.save(wrap({f"{prefix}{name}": value for name, value in state.items()}), tmp_path / file)
        found = read_state(tmp_path / file)
        assert found.part == part and models.part_of(tmp_path / file) == part
        assert found.weights.keys() == state.keys()
        assert all(torch.equal(found.weights[name], value) for name, value in state.items())


WRAPPED = {
    "DataParallel": nn.DataParallel, "compiled": torch.compile,
    "compiled, in DataParallel": lambda net: nn.DataParallel(torch.compile(net)),
    "DataParallel, compiled": lambda net: torch.compile(nn.DataParallel(net)),
    "averaged": AveragedModel, "a part compiled": lambda net: _compile_layer(net),
}


def _compile_layer(net):
    net.layer1 = torch.compile(net.layer1)
    return net


@pytest.mark.parametrize("how", WRAPPED)
def test_what_torchs_wrappers_put_before_names_is_left_out(how, tmp_path):
    net = timm.create_model("resnet18", **NET)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    torch.save(WRAPPED[how](net).state_dict(), tmp_path / "w.pth")
    found = read_state(tmp_path / "w.pth").weights
    assert found.keys() == state.keys() and all(torch.equal(found[name], value) for name, value in state.items())


def test_wrapped_names_in_safetensors_and_older_formats_and_half_precision(tmp_path):
    state = timm.create_model("resnet18", **NET).state_dict()
    save_file({f"module.{name}": value for name, value in state.items()}, tmp_path / "w.safetensors")
    torch.save({"state_dict": state}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for file, part in (("w.safetensors", None), ("old.pth", "state_dict")):
        found = read_state(tmp_path / file)
        assert found.part == part and all(torch.equal(found.weights[name], value) for name, value in state.items())
    torch.save({name: value.bfloat16() for name, value in state.items()}, tmp_path / "half.pth")
    assert read_state(tmp_path / "half.pth").weights["conv1.weight"].numpy().dtype == np.float32


def test_a_model_of_ones_own_may_call_a_part_of_it_module(tmp_path, monkeypatch):
    (tmp_path / "own_wrapper.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self, num_classes, in_chans):\n"
        "        super().__init__()\n        self.module = nn.Linear(in_chans, num_classes)\n"
        "    def forward(self, images):\n        return self.module(images.mean((2, 3)))\n")
    monkeypatch.syspath_prepend(tmp_path)
    settings = ModelSettings(model="own_wrapper:Net", pretrained=str(tmp_path / "w.pth"))
    own = models.build(settings, **SHAPE).net.state_dict()
    assert list(own) == ["module.weight", "module.bias"]
    torch.save(own, tmp_path / "w.pth")
    weights = models.pretrained_weights(settings, **SHAPE)
    assert all(np.array_equal(weights[name], value.numpy()) for name, value in own.items())
    trained = models.read_trained_file(tmp_path / "w.pth", settings, **SHAPE)
    models.check_trained(trained, **SHAPE)
    assert trained.classes == 10


def test_a_checkpoint_of_timms_training_is_what_training_begins_with(net, tmp_path):
    ema = ModelEmaV3(net)
    with torch.no_grad():
        for parameter in ema.module.parameters():
            parameter.add_(0.25)
    file = timms_checkpoint(net, tmp_path, ema)
    with pytest.raises(pickle.UnpicklingError, match=r"argparse\.Namespace"):
        torch.load(file, weights_only=True)  # it needs more than tensors
    settings = ModelSettings(model="resnet18", args=NET, pretrained=str(file))
    weights, averaged = models.pretrained_weights(settings, **SHAPE), ema.module.state_dict()
    assert models.part_of(file) == "state_dict_ema" and not any(name.startswith("fc.") for name in weights)
    assert all(np.array_equal(value, averaged[name].numpy()) for name, value in weights.items())


# -- what is refused --------------------------------------------------------------------------------------------------


class Evil:
    """What makes a folder when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.mark),)


def put_pickle(file: Path, content: bytes) -> None:
    """A file in the layout of torch.save, around a pickle made by hand."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


def unicode(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


NAMESPACE = b"cargparse\nNamespace\n)\x81"  # an empty one, on the stack
BY_HAND = {  # pickles that try to make a Namespace do what it should not
    "a function as its __setstate__": b"\x80\x02" + NAMESPACE + b"}" + unicode("__setstate__") + b"cos\nsystem\nsb"
                                      + unicode("touch MARK") + b"b.",
    "another class for it": b"\x80\x02" + NAMESPACE + b"}}" + unicode("__class__") + b"cpathlib\nPath\ns\x86b.",
    "a function called beside it": b"\x80\x02" + NAMESPACE + b"cbuiltins\neval\n" + unicode("open('MARK', 'w')")
                                   + b"\x85R.",
    "what a Namespace inherits": b"\x80\x02cargparse\nNamespace.__init__.__globals__\n.",
    "another class of argparse": b"\x80\x02cargparse\nFileType\n)\x81.",
    "a function of argparse": b"\x80\x02cargparse\n_sys.modules\n.",
}


@pytest.mark.parametrize("case", BY_HAND)
def test_a_namespace_is_no_way_to_run_code(case, tmp_path):
    mark = tmp_path / "mark"
    content = BY_HAND[case].replace(unicode("touch MARK"), unicode(f"touch {mark}"))
    content = content.replace(unicode("open('MARK', 'w')"), unicode(f"open({str(mark)!r}, 'w')"))
    put_pickle(tmp_path / "w.pth", content)
    with pytest.raises(ValueError, match=r"^it (holds|cannot be read)"):
        read_state(tmp_path / "w.pth")
    assert not mark.exists()


def test_the_files_of_these_tests_do_what_they_should(tmp_path):
    content = BY_HAND["a function called beside it"]
    mark = tmp_path / "mark"
    pickle.loads(content.replace(unicode("open('MARK', 'w')"), unicode(f"open({str(mark)!r}, 'w')")))
    assert mark.exists()


@pytest.mark.parametrize("content", [
    lambda state, evil: {"state_dict": state, "args": argparse.Namespace(hook=evil)},
    lambda state, evil: {"state_dict": state, "optimizer": {"state": evil}},
    lambda state, evil: {**state, "x": evil},
    lambda state, evil: evil,
])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_would_run_code_is_refused_with_what_to_do(content, zipped, tmp_path):
    state = timm.create_model("resnet18", **NET).state_dict()
    torch.save(content(state, Evil(tmp_path / "mark")), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(RefusedError, match=r"^it holds 'posix.mkdir' beside weights, .*torch\.save\(model.state_dict"):
        read_state(tmp_path / "w.pth")
    assert not (tmp_path / "mark").exists()


def test_a_whole_model_is_refused_with_what_to_do(tmp_path):
    torch.save({"model": timm.create_model("resnet18", **NET)}, tmp_path / "w.pth")
    settings = ModelSettings(model="resnet18", args=NET, pretrained=str(tmp_path / "w.pth"))
    with pytest.raises(ValueError, match=r"^pretrained = '.*w\.pth': no weights for resnet18: it holds "
                                         r"'timm\.models\.resnet\.ResNet' beside weights, .*write its weights alone"):
        models.pretrained_weights(settings, **SHAPE)


@pytest.mark.parametrize(("content", "said"), [
    ({"epoch": 3, "best": 0.5}, "it holds no weights: its entries are 'epoch', 'best'; none is a tensor, or one of "
                                "state_dict_ema, model_ema, state_dict, model"),
    ({"state_dict": {}}, "its entries are none"),
    ([1, 2], "it holds no weights: it is a list"),
    ({"a\x1b[31m\nb": 1}, r"its entries are 'a\\x1b\[31m\\nb'"),
])
def test_a_file_without_weights_is_one_line(content, said, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=said) as caught:
        read_state(tmp_path / "w.pth")
    assert str(caught.value).isprintable()


# -- a trained teacher ------------------------------------------------------------------------------------------------


def given(tmp_path, *files, **teacher) -> Study:
    values = load_study("digits").to_values()
    values["teacher"] = {"model": "resnet18", "args": NET, "image_size": SIZE, "trained": list(map(str, files)),
                         **TRAINED_WITH, **teacher}
    values["teacher"] = {name: value for name, value in values["teacher"].items() if value is not None}
    (tmp_path / "given.toml").write_text(tomli_w.dumps(values))
    return Study(load_study(str(tmp_path / "given.toml")), Storage(tmp_path / "study"))


def taken(study: Study) -> tuple[dict, str | None]:
    """A given teacher's done-mark, and the note about it, as a run leaves them."""
    stage = study.stages["teacher"]
    folder = stage.folder
    folder.path.mkdir(parents=True)
    note = stage.take_given(folder, teacher_predictions)
    assert stage.is_current() and (note is None or "\n" not in note)
    return stage.done, note


def test_a_checkpoint_of_timms_is_as_good_a_teacher_as_plain_timm_says(net, digits, tmp_path):
    file = timms_checkpoint(net, tmp_path)
    study = given(tmp_path, file)
    again = timm.create_model("resnet18", num_classes=10, in_chans=1, checkpoint_path=str(file), **NET).eval()
    expected = predictions_of(again, digits.validation.images, **TRAINED_WITH) == digits.validation.labels
    done, note = taken(study)
    assert done["best_validation"] == expected.mean() > 0.8 and note is None
    assert done["outcome"].startswith("resnet18 from model_best.pth.tar (its state_dict) · given · ")
    assert done["members"][0]["normalised"] == [[0.3], [0.4]] and done["kind"] == "CNN"
    (member,) = study.stages["teacher"].members()
    assert all(np.array_equal(member.weights[name], value) for name, value in net.state_dict().items())


def test_files_of_any_kind_are_the_same_teacher_and_several_answer_with_their_mean(net, digits, tmp_path):
    state = net.state_dict()
    save_file({f"module.{name}": value for name, value in state.items()}, tmp_path / "a.safetensors")
    last = {name: value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
            for name, value in state.items()}  # as training with --channels-last leaves them
    torch.save({"model_ema": last, "model": moved(state, 9.0)}, tmp_path / "b.pt")
    other = {name: value + torch.arange(10) if name == "fc.bias" else value for name, value in state.items()}
    torch.save(other, tmp_path / "c.bin")
    accuracies, weights = {}, {}
    for names in (("a.safetensors",), ("b.pt",), ("c.bin",), ("a.safetensors", "c.bin")):
        folder = tmp_path / f"study of {'+'.join(names)}"
        folder.mkdir()
        done, _ = taken(given(folder, *(tmp_path / name for name in names)))
        accuracies[names], weights[names] = done["best_validation"], done["weights"]
    shifted = timm.create_model("resnet18", num_classes=10, in_chans=1, **NET).eval()
    shifted.load_state_dict(other)
    with torch.no_grad():
        images = normalised(digits.validation.images, **TRAINED_WITH)
        mean = ((net(images) + shifted(images)) / 2).argmax(1).numpy()
    assert accuracies[("a.safetensors",)] == accuracies[("b.pt",)] != accuracies[("c.bin",)]
    assert weights[("a.safetensors",)] == weights[("b.pt",)] != weights[("c.bin",)]
    assert accuracies["a.safetensors", "c.bin"] == (mean == digits.validation.labels).mean()


def test_what_a_given_teacher_depends_on_is_in_its_fingerprint(net, tmp_path):
    torch.save(net.state_dict(), tmp_path / "w.pth")
    torch.save(moved(net.state_dict(), 1.0), tmp_path / "other.pth")

    def name(file="w.pth", **teacher):
        return given(tmp_path, tmp_path / file, **teacher).stages["teacher"].folder.path.name

    names = [name(), name("other.pth"), name(mean=0.2), name(mean=None, std=None), name(image_size=32),
             name(mean=None, std=None, normalise="images"), name(args={**NET, "avg_down": True})]
    assert len(set(names)) == len(names)
    # Neither where the file is called what, nor what is only for training.
    (tmp_path / "w.pth").rename(tmp_path / "moved.pth")
    assert name("moved.pth") == name("moved.pth", epochs=3, lr=0.1, pretrained=True) == names[0]


@pytest.mark.parametrize(("teacher", "said"), [
    ({"trained": ["nowhere.pth"]}, "teacher.trained: nowhere.pth: nowhere.pth does not exist"),
    ({"trained": ["."]}, "teacher.trained: .: it is a folder, whose config.json names its model; --set teacher.model= "
                         "removes the study's own model"),
    ({"model": None, "args": None}, "teacher.trained: w.pth: it is a file, which does not say of which model its "
                                    "weights are; set teacher.model"),
    ({"trained": ["five.pth"]}, "teacher.trained: five.pth has 5 classes, but the data have 10; train it on these data,"
                                " or choose data.classes accordingly"),
    ({"args": {}}, "teacher.trained: w.pth: its weights do not fit a resnet18 for images of 1 channels: "
                   "layer1.0.conv1.weight is (8, 64, 3, 3), not (64, 64, 3, 3); set teacher.args and "
                   "teacher.image_size to what it was trained with"),
    ({"args": {"layer": 3}}, "teacher.args = {'layer': 3} do not suit resnet18"),
    ({"model": "resnet19"}, "teacher.model = 'resnet19' is not a timm model; did you mean"),
    ({"mean": [0.5, 0.5, 0.5], "std": 0.5}, "teacher.mean = [0.5, 0.5, 0.5] has 3 numbers, but the images have 1 "
                                            "channels; one number alone holds for all"),
    ({"trained": ["whole.pth"]}, "teacher.trained: whole.pth: it holds 'timm.models.resnet.ResNet' beside weights"),
    ({"logits": "l.safetensors"}, "and both model and trained = [files of its weights], not model and trained and "),
])
def test_a_file_that_is_no_teacher_for_the_study_is_one_line_of_the_plan(teacher, said, net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(net.state_dict(), "w.pth")
    torch.save(timm.create_model("resnet18", num_classes=5, in_chans=1, **NET).state_dict(), "five.pth")
    torch.save(net, "whole.pth")
    values = load_study("digits").to_values()
    wanted = {"model": "resnet18", "args": NET, "image_size": SIZE, "trained": ["w.pth"]} | teacher
    values["teacher"] = {name: value for name, value in wanted.items() if value is not None}
    Path("given.toml").write_text(tomli_w.dumps(values))
    code, _, err = here("plan", "given.toml")
    assert code == 2 and said in err and is_one_line(err), err


def test_a_cluster_must_find_the_file_where_the_settings_say(net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given(tmp_path, "w.pth")
    words = ("submit", "given.toml", "--to", "slurm", "--dir", "/shared/study", "--print")
    code, _, err = here(*words)
    assert code == 2 and is_one_line(err) and "teacher.trained.0 = 'w.pth' is relative; the cluster reads it" in err
    code, out, err = here(*words, "--set", "teacher.trained=/shared/w.pth")
    assert code == 0 and "/shared/w.pth" in out, err


@pytest.mark.slow
def test_a_run_with_a_checkpoint_as_teacher_and_what_it_exports(net, digits, tmp_path):
    """The logits that the student learns from are plain timm's, and so are those of the exported folder."""
    file = timms_checkpoint(net, tmp_path)
    given(tmp_path, file)
    study = tmp_path / "study"
    run = kdstudy("run", tmp_path / "given.toml", "--dir", study, "--until", "teacher_logits", "--set",
                  "train.epochs=2", "--set", "search.baseline_trials=1", "--set", "search.baseline_protected=0",
                  "--set", "search.report_every=1", "--set", "confirm.seeds=1", cwd=tmp_path).stdout
    assert "resnet18 from model_best.pth.tar (its state_dict) · given" in run and "note:" not in run
    with torch.no_grad():
        expected = net(normalised(digits.test.images, **TRAINED_WITH)).numpy()
    found = np.stack(pd.read_parquet(next(study.glob("teacher_logits-*/test.parquet")))["logits"])
    np.testing.assert_allclose(found.astype(np.float32), expected, rtol=2e-3, atol=2e-2)  # fp16
    file.unlink()  # a study keeps its own copy
    kdstudy("export", study, tmp_path / "teacher", "--model", "teacher", cwd=tmp_path)
    exported = timm.create_model(f"local-dir:{tmp_path}/teacher", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(exported)
    assert config["input_size"] == (1, SIZE, SIZE) and (config["mean"], config["std"]) == ([0.3], [0.4])
    with torch.no_grad():
        again = exported(normalised(digits.test.images, config["mean"][0], config["std"][0])).numpy()
    np.testing.assert_array_equal(again, expected)


def test_a_plan_shows_the_files_the_part_read_and_the_normalisation(net, tmp_path):
    file = timms_checkpoint(net, tmp_path)
    torch.save({"state_dict_ema": timm.create_model("resnet18", **NET).state_dict()}, tmp_path / "s.pth")
    given(tmp_path, file)
    args = "{layers = [1, 1, 1, 1], channels = [8, 16, 32, 32]}"
    code, out, err = here("plan", str(tmp_path / "given.toml"), "--set", "student.model=resnet18", "--set",
                          f"student.args={args}", "--set", "student.image_size=16", "--set",
                          f"student.pretrained={tmp_path}/s.pth", "--set", "student.normalise=images")
    assert code == 0, err
    lines = {line.split(" ")[0]: line for line in out.partition("stage ")[0].splitlines()}
    assert "resnet18 from model_best.pth.tar (its state_dict), " in lines["teacher"]
    assert lines["teacher"].endswith(" parameters, images normalised with mean 0.3 and std 0.4")
    assert f"begins with {tmp_path}/s.pth (its state_dict_ema), images normalised with mean 0.307" in lines["student"]


# -- doubts -----------------------------------------------------------------------------------------------------------


def test_another_normalisation_is_noticed_when_the_run_evaluates_the_teacher(net, digits, tmp_path):
    """Even where the teacher is far from guessing: the usual ones are tried."""
    torch.save(net.state_dict(), tmp_path / "w.pth")
    right, wrong = (float((predictions_of(net, digits.validation.images, mean, std) == digits.validation.labels).mean())
                    for mean, std in ((0.3071, 0.3761), (0.0, 1.0)))
    assert wrong < right - 0.05
    done, note = taken(given(tmp_path, tmp_path / "w.pth", mean=0, std=1))
    assert done["best_validation"] == wrong
    assert note.startswith(f"the teacher has {100 * wrong:.1f} % of 360 validation images right with mean 0 and std 1, "
                           "but ") and "% with mean 0." in note and "set teacher.mean and teacher.std" in note


def test_another_order_of_classes_is_noticed_when_the_run_evaluates_the_teacher(net, digits, tmp_path):
    """As a folder's classes in the order of their numbers, and not as texts."""
    order = [0, 1, 3, 2, 5, 4, 7, 6, 9, 8]
    state = {name: value[order] if name.startswith("fc.") else value for name, value in net.state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    done, note = taken(given(tmp_path, tmp_path / "w.pth"))
    accuracy = float((predictions_of(net, digits.validation.images, **TRAINED_WITH) == digits.validation.labels).mean())
    assert 0.1 < done["best_validation"] < 0.3
    assert f"but would have {100 * accuracy:.1f} % if its classes stood in another order" in note
    assert "its outputs must be in the order of the classes of data.source (0, 1, 2, …): reorder the rows of" in note


def test_a_teacher_that_guesses_is_said_to_with_both_causes(tmp_path):
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet18", num_classes=10, in_chans=1, **NET).state_dict(), tmp_path / "w.pth")
    _, note = taken(given(tmp_path, tmp_path / "w.pth"))
    assert note.startswith("the teacher is no better than guessing on the validation images (")
    assert "another mean and std than teacher.mean and teacher.std (now mean 0.3 and std 0.4)" in note
    assert "or with its classes in another order" in note and "the classes of data.source (0, 1, 2, …)" in note


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_guessing_does_not_look_like_another_order(classes):
    names = tuple(map(str, range(classes)))
    for seed in range(20):
        generator = np.random.default_rng(seed)
        labels, predictions = generator.integers(0, classes, (2, 300))
        assert doubts.of_order(predictions, labels, names) is None
        renumbered = doubts.reordered_accuracy(predictions, labels, classes)
        assert abs(renumbered - 1 / classes) < 0.15
        order = np.roll(np.arange(classes), 1)
        assert doubts.of_order(order[labels], labels, names) is not None or classes == 100
        assert doubts.of_order(labels, labels, names) is None


# -- mean and std -----------------------------------------------------------------------------------------------------


def test_measured_mean_and_std_are_those_of_the_training_images(digits):
    generator = np.random.default_rng(0)
    colour = generator.integers(0, 256, (1500, 3, 5, 5)).astype(np.uint8)
    colour[:, 1] //= 7
    for images in (digits.train.images, colour):
        pixels = images.astype(np.float64) / 255
        mean, std = models.mean_and_std(images)
        np.testing.assert_allclose(mean, pixels.mean((0, 2, 3)), rtol=1e-12)
        np.testing.assert_allclose(std, pixels.std((0, 2, 3)), rtol=1e-10)


def test_each_model_is_normalised_with_what_it_learns_from():
    """The student with the images that it sees with labels, the teacher with all training images; neither with others.
    """
    config = load_study("digits", ("student.normalise=images", "teacher.normalise=images"))
    study = Study(config, types.SimpleNamespace(folder=Path("nowhere")))
    splits = study.context.splits
    for section, images in (("student", splits.student_train), ("teacher", splits.train)):
        pixels = images.images.astype(np.float64) / 255
        assert study.context.model(section).mean == pytest.approx([pixels.mean()])
        assert study.context.model(section).std == pytest.approx([pixels.std()])
    task = study.stages["baseline"].task()
    model = task.build_model(task.model)
    image = torch.from_numpy(splits.test.images[:4]).float() / 255
    expected = model.net((image - splits.student_train.images.mean() / 255) / splits.student_train.images.std() * 255)
    # std is that of images in 0..1, so dividing by that of bytes and multiplying by 255 is the same.
    torch.testing.assert_close(model(image), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [("student.mean=0.3", "student.std=[0.4]"), ("student.normalise=images",)])
def test_what_is_exported_carries_its_mean_and_std(settings, tmp_path):
    folder = write_finished(tmp_path / "s", *settings)
    study = Study(load_study("digits", (*SHORT, *settings), smoke=True), Storage(folder))
    code, _, err = here("export", str(folder), str(tmp_path / "out"))
    assert code == 0, err
    exported, own = timm.create_model(f"local-dir:{tmp_path}/out", pretrained=True), study.context.model("student")
    config = timm.data.resolve_model_data_config(exported)
    assert (tuple(config["mean"]), tuple(config["std"])) == models.chosen_normalisation(own, 1)
    assert f"normalised with {models.show_normalisation(config['mean'], config['std'])}." in (
        tmp_path / "out" / "README.md").read_text()
    inside = models.build(own, **SHAPE)
    models.load_weights(inside, tmp_path / "out" / "model.safetensors")
    images = torch.from_numpy(study.context.splits.test.images).float() / 255
    mean, std = config["mean"][0], config["std"][0]
    with torch.no_grad():
        assert torch.equal(exported.eval()((images - mean) / std), inside.eval()(images))


def test_a_folders_mean_and_std_can_be_replaced(net, digits, tmp_path):
    """timm's save_for_hf writes those of its configuration, whatever the model was trained with."""
    save_for_hf(net, str(tmp_path / "t"), model_args=NET, model_config={"num_classes": 10})
    config = json.loads((tmp_path / "t" / "config.json").read_text())
    config["pretrained_cfg"] |= {"input_size": [1, SIZE, SIZE], "mean": [0.0], "std": [1.0]}
    (tmp_path / "t" / "config.json").write_text(json.dumps(config))
    folder = {"model": None, "args": None, "image_size": None}
    without = given(tmp_path, tmp_path / "t", **folder, mean=None, std=None)
    replaced = given(tmp_path, tmp_path / "t", **folder)
    for study, (mean, std) in ((without, (0, 1)), (replaced, (0.3, 0.4))):
        right = predictions_of(net, digits.validation.images, mean, std) == digits.validation.labels
        done, _ = taken(study)
        assert done["best_validation"] == right.mean() and done["members"][0]["normalised"] == [[mean], [std]]
    assert without.stages["teacher"].done["weights"] != replaced.stages["teacher"].done["weights"]


def test_a_constant_channel_has_no_std(tmp_path):
    images = np.zeros((40, 3, 8, 8), np.uint8)
    images[:, :2] = np.random.default_rng(0).integers(0, 256, (40, 2, 8, 8))
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(40) % 2)
    code, _, err = here("plan", "digits", "--set", f"data.source={tmp_path}/a.npz", "--set", "student.normalise=images")
    assert code == 2 and is_one_line(err)
    assert "student.normalise = 'images': channel 2 is the same in every pixel of the training images" in err


def test_a_mean_and_a_std_leave_other_fingerprints_alone(tmp_path):
    """Those of a study that sets none are what they were before there were such settings."""
    def names(*settings):
        study = Study(load_study("digits", settings), Storage(tmp_path))
        return {name: study.stages[name].folder.path.name for name in ("teacher", "baseline")}

    assert names() == {"teacher": "teacher-9de217b6d6", "baseline": "baseline-9e20e1b00a"}
    student, teacher = names("student.mean=0.5", "student.std=0.5"), names("teacher.normalise=images")
    assert student["teacher"] == names()["teacher"] and student["baseline"] != names()["baseline"]
    assert teacher["baseline"] == names()["baseline"] and teacher["teacher"] != names()["teacher"]
    assert names("student.normalise=images")["baseline"] not in (names()["baseline"], student["baseline"])


@pytest.mark.parametrize(("settings", "said"), [
    (("student.mean=0.5",), "student: mean needs std beside it"),
    (("teacher.std=0.5",), "teacher: std needs mean beside it"),
    (("student.mean=[123.7,116.3,103.5]", "student.std=[58.4,57.1,57.4]"),
     "student.mean = [123.7, 116.3, 103.5]: must be at most 1, since images are normalised from 0..1; divide numbers "
     "for images of 0..255 by 255"),
    (("student.mean=nan", "student.std=1"), "student.mean = nan: must be a finite number"),
    (("student.mean=0.5", "student.std=0"), "student.std = 0: must be at least 1e-06"),
    (("student.mean=0.5", "student.std=[0.5,0]"), "student.std.1 = 0: must be at least 1e-06"),
    (("student.mean=[0.5,0.5]", "student.std=1"), "student.mean = [0.5, 0.5] has 2 numbers, but the images have 1 "),
    (("student.mean=0.5", "student.std=0.5", "student.normalise=images"),
     "student: takes mean and std, or normalise = 'images', which measures them, not both"),
    (("student.normalise=imagenet",), "student.normalise = 'imagenet': must be 'model' or 'images'"),
])
def test_a_normalisation_that_cannot_be_is_one_line(settings, said):
    code, _, err = here("plan", "digits", *(word for setting in settings for word in ("--set", setting)))
    assert code == 2 and said in err and is_one_line(err), err
