"""The formats that a student is exported in: each is the model of the study, the lines of the card classify a file as
the study does, and `kdstudy verify` notices what is not as it was."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic import here, is_one_line, write_finished

from kdstudy.config.load import load_study
from kdstudy.export import details as writing_details
from kdstudy.export import proof, writing
from kdstudy.export.choices import CHOICES, QUANTISED
from kdstudy.export.formats import FORMAT, FORMATS
from kdstudy.export.formats.base import Deployable
from kdstudy.export.formats.onnx_int8 import CALIBRATION_IMAGES, calibration_images
from kdstudy.export.standalone import READERS
from kdstudy.store.storage import Storage
from kdstudy.study import Study
from kdstudy.trainables import data, models
from kdstudy.trainables.images import ImageSet
from kdstudy.trainables.sources.decoding import Encoded, decode
from kdstudy.trainables.views import resize

ROOT = Path(__file__).parents[1]
onnxruntime = pytest.importorskip("onnxruntime")
ALL = ("--format", "timm", "--format", "onnx", "--format", "pt2", "--quantise", "int8")
SIZES = [(40, 56), (64, 48), (37, 37), (90, 41)]  # width and height in pixels
STORED, OWN = 16, 24  # pixels, of the images in the study and of its student
NETS = '''
from torch import nn


class Tiny(nn.Module):
    def __init__(self, num_classes, in_chans):
        super().__init__()
        self.pool, self.head = nn.AdaptiveAvgPool2d(4), nn.Linear(16 * in_chans, num_classes)

    def forward(self, images):
        return self.head(self.pool(images).flatten(1))


class Choosing(Tiny):
    def forward(self, images):
        is_known = images.device.type != "meta"  # as when kdstudy counts parameters
        return super().forward(-images if is_known and images.mean().item() < 0 else images)


def tiny(num_classes, in_chans):
    return Tiny(num_classes, in_chans)


def choosing(num_classes, in_chans):
    return Choosing(num_classes, in_chans)
'''


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of JPEG files of several sizes, in ten classes, each of a colour of its own."""
    folder, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for label in range(10):
        (folder / str(label)).mkdir()
        for number in range(12):
            width, height = SIZES[number % len(SIZES)]
            colour = generator.integers(0, 120, 3) + 12 * label
            coarse = generator.integers(-60, 60, (6, 8, 3)) + colour
            picture = Image.fromarray(coarse.clip(0, 255).astype(np.uint8))
            picture.resize((width, height), Image.Resampling.BICUBIC).save(folder / str(label) / f"{number}.jpg")
    return folder


@pytest.fixture(scope="module")
def study(photos, tmp_path_factory):
    """A study of these files, stored smaller than the student takes them."""
    return write_finished(tmp_path_factory.mktemp("of-photos") / "photos", f'data.source="{photos}"',
                          f"data.stored_size={STORED}", f"student.image_size={OWN}", "data.student_images=0.5")


@pytest.fixture(scope="module")
def exported(study):
    """Its student in all formats, and what the command printed."""
    out = study.parent / "student"
    code, printed, err = here("export", str(study), str(out), *ALL)
    assert code == 0, err
    return out, printed


def details_of(out):
    return json.loads((out / "export.json").read_text())


def model_of(study):
    """The student by the study's own code."""
    context = Study(load_study(str(study)), Storage(study)).context
    model = models.build(context.config.student, **context.shape).eval()
    [weights] = {path.read_bytes(): path for path in study.glob("confirm-*/runs/*/model.safetensors")}.values()
    models.load_weights(model, weights)
    return model


@torch.no_grad()
def logits_of(model, images):
    return model(resize(torch.from_numpy(images), model.size)).numpy()


def some_images(number, size, seed=0):
    return np.random.default_rng(seed).random((number, 3, *size), dtype=np.float32)


# -- what is written --------------------------------------------------------------------------------------------------


def test_each_format_is_the_model_that_was_tested(exported):
    out, printed = exported
    details = details_of(out)
    assert list(details["formats"]) == ["timm", "onnx", "onnx-int8", "pt2"]
    for name in ("timm", "onnx", "pt2"):
        found = details["formats"][name]
        assert found["accuracy"] == details["formats"]["timm"]["accuracy"] and found["agreement"] == 1
        assert found["as_share"] < 1e-4 and f"{name} " in printed
    assert {path.name for path in out.iterdir()} == {
        "README.md", "export.json", "kdstudy.json", "settings.toml", "probes.safetensors", "config.json",
        "model.safetensors", "model.onnx", "model.int8.onnx", "model.pt2"}


def test_what_eight_bits_lose_is_measured_and_shown(exported):
    out, printed = exported
    formats = details_of(out)["formats"]
    lost = formats["onnx-int8"]["lost_points"]
    assert lost == pytest.approx(100 * (formats["onnx"]["accuracy"] - formats["onnx-int8"]["accuracy"]))
    assert f"{100 * formats['onnx-int8']['accuracy']:.2f} %" in printed
    assert ("points less accurate than onnx" in printed) == (lost > 1)
    assert "As onnx-int8: " in (out / "README.md").read_text()
    sizes = {name: sum(file["bytes"] for file in found["files"].values()) for name, found in formats.items()}
    assert sizes["onnx-int8"] < 0.75 * sizes["onnx"]


def test_calibration_takes_images_from_the_whole_validation_split():
    numbers = np.arange(3 * CALIBRATION_IMAGES).astype(np.uint8)
    images = ImageSet(np.broadcast_to(numbers[:, None, None, None], (len(numbers), 1, 2, 2)), numbers)
    taken = calibration_images(images)
    assert len(taken) == CALIBRATION_IMAGES and (taken[-1] == numbers[-1]).all() and (taken[0] == numbers[0]).all()
    few = ImageSet(images.images[:5], numbers[:5])
    assert np.array_equal(calibration_images(few), few.images)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_graphs_take_any_number_of_images_and_normalise_them(study, exported, batch):
    images = some_images(batch, (OWN, OWN), batch)
    expected = logits_of(model_of(study), images)
    session = onnxruntime.InferenceSession(exported[0] / "model.onnx")
    assert np.abs(session.run(["logits"], {"images": images})[0] - expected).max() < 1e-4
    with torch.no_grad():
        program = torch.export.load(exported[0] / "model.pt2").module()
        assert np.abs(program(torch.from_numpy(images)).numpy() - expected).max() < 1e-4


def test_graphs_that_resize_take_images_of_any_size(study, tmp_path):
    code, _, err = here("export", str(study), str(tmp_path / "any"), "--format", "onnx", "--format", "pt2",
                        "--resize-inside")
    assert code == 0, err
    session = onnxruntime.InferenceSession(tmp_path / "any" / "model.onnx")
    program, model = torch.export.load(tmp_path / "any" / "model.pt2").module(), model_of(study)
    for size in ((9, 7), (STORED, STORED), (OWN, OWN), (61, 130)):  # enlarged, as it is, and shrunk with antialiasing
        images = some_images(2, size)
        expected = logits_of(model, images)
        assert np.abs(session.run(None, {"images": images})[0] - expected).max() < 1e-4
        with torch.no_grad():
            assert np.abs(program(torch.from_numpy(images)).numpy() - expected).max() < 1e-4
    assert details_of(tmp_path / "any")["preprocessing"]["resized_by_graphs"] is True


def test_files_say_what_they_need_and_nothing_of_this_machine(study, exported):
    out, _ = exported
    details, session = details_of(out), onnxruntime.InferenceSession(out / "model.onnx")
    known = session.get_modelmeta().custom_metadata_map
    assert json.loads(known["class_names"]) == details["classes"] == [str(label) for label in range(10)]
    assert session.get_inputs()[0].shape == ["batch", 3, OWN, OWN]
    inputs = details["preprocessing"]
    assert (inputs["stored_size"], inputs["size"], inputs["channels"]) == (STORED, OWN, 3)
    assert inputs["mean"] == list(model_of(study).mean) == json.loads(known["preprocessing"])["mean"]
    context = Study(load_study(str(study)), Storage(study)).context
    assert details["data"] == {name: context.image_hashes[name] for name in details["data"]}
    assert details["teacher"]["stage"] in {path.name for path in study.iterdir()}
    [weights] = {writing_details.sha256(path) for path in study.glob("confirm-*/runs/*/model.safetensors")}
    assert details["weights"] == [{"sha256": weights}]
    assert {"python", "kdstudy", "torch", "timm", "onnx", "onnxruntime"} <= set(details["versions"])
    assert load_study(str(out / "settings.toml")).data == context.config.data
    for path in out.glob("model.*"):
        content = path.read_bytes()
        for folder in (sys.prefix, str(study.parent), proof.__file__.rsplit("/", 3)[0]):
            assert folder.encode() not in content


def test_the_formats_are_those_that_can_be_asked_for_and_read():
    assert {one.name for one in FORMATS} == set(READERS) == {*CHOICES, *QUANTISED.values()}
    assert set(CHOICES) == {one.name for one in FORMATS if one.source is None}
    names = [one.name for one in FORMATS]
    assert all(names.index(one.source) < names.index(one.name) for one in FORMATS if one.source)
    code, _, err = here("export", "digits", "out", "--format", "tf")
    assert code == 2 and all(name in err for name in CHOICES)


@pytest.mark.parametrize(("words", "said"), [
    (("--quantise", "int8"), "add --format onnx"),
    (("--resize-inside",), "add --format onnx or --format pt2"),
])
def test_options_that_need_another_say_so(study, tmp_path, words, said):
    code, _, err = here("export", str(study), str(tmp_path / "out"), *words)
    assert code == 2 and said in err and is_one_line(err) and not (tmp_path / "out").exists()


def test_the_current_folder_is_not_replaced(study, tmp_path, monkeypatch):
    (tmp_path / "earlier" / "inside").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "earlier" / "inside")
    for out in (".", ".."):
        code, _, err = here("export", str(study), out)
        assert code == 2 and is_one_line(err) and "name another" in err


@pytest.mark.parametrize("there", [True, False])
def test_an_interrupt_between_two_exports_loses_neither(tmp_path, monkeypatch, there):
    target, rename = tmp_path / "out", Path.rename
    if there:
        target.mkdir()
        (target / "earlier.txt").touch()

    def interrupted(self, other):
        if other == target and not self.name.endswith("earlier"):
            raise KeyboardInterrupt
        return rename(self, other)

    def write():
        with writing._draft_of(target) as draft:
            draft.mkdir()
            (draft / "new.txt").touch()

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write()
    assert [path.name for path in tmp_path.rglob("*")] == (["out", "earlier.txt"] if there else [])
    monkeypatch.undo()
    if there:
        target.rename(tmp_path / ".out.earlier")  # as after kill -9
    write()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "new.txt"]


def test_a_missing_tool_is_named_with_its_remedy(study, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "onnxslim" else
                        found(name, *rest))
    code, _, err = here("export", str(study), str(tmp_path / "out"), "--format", "onnx")
    assert code == 2 and is_one_line(err) and "onnxslim; install with pip install 'kdstudy[onnx]'" in err
    assert not (tmp_path / "out").exists()


# -- how it is used ---------------------------------------------------------------------------------------------------

RUN_BLOCKS = '''
import json, shutil, sys
sys.modules["kdstudy"] = None
blocks, pictures = json.loads(sys.argv[1]), sys.argv[2:]
for picture in pictures:
    shutil.copy(picture, "image.jpg")
    for block in blocks:
        names = {}
        exec(block, names)
        print("LOGITS", json.dumps(names["logits"].tolist()))
'''


def snippets_of(card):
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def classify(folder, card, *pictures):
    """Run the lines of a card as written, in a new process in this folder, for each picture in turn: the printed
    classes and the logits of each."""
    done = subprocess.run([sys.executable, "-c", RUN_BLOCKS, json.dumps(snippets_of(card)), *pictures], cwd=folder,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    return list(zip(lines[::2], [np.array(json.loads(line.removeprefix("LOGITS "))) for line in lines[1::2]],
                    strict=True))


def by_the_study(study, file):
    """The logits of an image file by the study's own reader and model."""
    settings = load_study(str(study)).data
    read = decode({"test": ([Encoded(file.name, file.read_bytes)], np.zeros(1, np.int64))}, settings).splits["test"]
    return logits_of(model_of(study), read.images.astype(np.float32) / 255)[0]


def test_the_lines_of_the_card_classify_a_file_as_the_study_does(study, exported, photos, tmp_path):
    out, _ = exported
    shutil.copytree(out, tmp_path / out.name)
    pictures = [photos / "7" / f"{number}.jpg" for number in (0, 3)]  # an upright one and a wide one
    found = classify(tmp_path, (out / "README.md").read_text(), *pictures)
    for file, (timm, onnx, int8, pt2) in zip(pictures, (found[:4], found[4:]), strict=True):
        expected = by_the_study(study, file)
        best = str([str(index) for index in expected.argsort()[::-1][:5]])
        for printed, logits in (timm, onnx, pt2):
            assert printed == best and np.abs(logits - expected).max() < 1e-4
        assert np.abs(int8[1] - expected).max() < 1


def test_the_readme_shows_the_lines_for_the_student_of_digits():
    config, readme = load_study("digits"), (ROOT / "study" / "README.md").read_text()
    splits = data.load(config.data)
    model = models.build(config.student, classes=10, channels=1, image_size=splits.image_size).eval()
    for kind in CHOICES:
        lines = FORMAT[kind].usage("student", Deployable(model, config.student, splits))
        assert "```python\n" + "\n".join(lines) + "\n```" in readme


# -- functions, and models that cannot be exported --------------------------------------------------------------------


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A module of one's own in the current folder, found by new processes too."""
    (tmp_path / "own_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("own_nets", None)


def function_study(folder, name):
    own = ("--set", f"student.model=own_nets:{name}", "--set", "student.args={}")
    return write_finished(folder, *own[1::2]), own


@pytest.mark.slow
def test_a_function_is_exported_and_called_only_if_it_is_named(nets):
    study, own = function_study(nets / "own", "tiny")
    code, _, err = here("export", str(study), "out", *own, *ALL)
    assert code == 0, err
    assert all(found["as_share"] < 1e-4 for name, found in details_of(nets / "out")["formats"].items()
               if name != "onnx-int8")
    code, _, err = here("verify", "out", "--trust")
    assert code == 2 and is_one_line(err) and "--function own_nets:tiny" in err
    code, _, err = here("verify", "out", "--format", "timm", "--function", "own_nets:other")
    assert code == 2 and "config.json names the function 'own_nets:tiny'" in err
    code, printed, err = here("verify", "out", "--format", "timm", "--function", "own_nets:tiny")
    assert code == 0 and "timm" in printed, err
    code, _, err = here("verify", "out", "--function", "torch.hub:load")
    assert code == 2 and "functions of 'torch' are refused" in err
    Image.fromarray(np.full((9, 12), 90, np.uint8)).save("grey.jpg")
    timm, onnx, _, pt2 = classify(nets, (nets / "out" / "README.md").read_text(), "grey.jpg")
    assert timm[0] == onnx[0] == pt2[0]


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_a_model_that_torch_cannot_export_ends_in_one_line_and_leaves_what_was_there(nets, kind):
    study, own = function_study(nets / "own", "choosing")
    code, _, err = here("export", str(study), "out", *own)
    assert code == 0, err
    before = {path.name: path.read_bytes() for path in (nets / "out").iterdir()}
    code, _, err = here("export", str(study), "out", *own, "--format", "timm", "--format", kind)
    assert code == 1 and is_one_line(err) and f"own_nets:choosing cannot be exported as {kind}" in err
    assert {path.name: path.read_bytes() for path in (nets / "out").iterdir()} == before
    assert not list(nets.glob(".out*"))


def test_a_file_that_is_another_model_is_not_exported(study, tmp_path, monkeypatch):
    """As by a converter with an error in it."""
    from kdstudy.export.formats.program import Whole

    right = Whole.forward
    monkeypatch.setattr(Whole, "forward", lambda self, images: right(self, images * 0.9))
    code, _, err = here("export", str(study), str(tmp_path / "out"), "--format", "pt2")
    assert code == 1 and is_one_line(err) and "the model exported as pt2 is not the one that was tested" in err
    assert not list(tmp_path.iterdir())


def test_the_mean_of_several_models_is_a_graph_but_no_timm_folder(study, tmp_path):
    code, _, err = here("export", str(study), str(tmp_path / "out"), "--average", "logits")
    assert code == 2 and is_one_line(err) and not (tmp_path / "out").exists()
    code, printed, err = here("export", str(study), str(tmp_path / "out"), "--average", "logits", "--format", "pt2")
    assert code == 0 and "the mean of 2 runs' logits" in printed, err
    images = some_images(3, (OWN, OWN))
    with torch.no_grad():
        mean = torch.export.load(tmp_path / "out" / "model.pt2").module()(torch.from_numpy(images)).numpy()
    assert np.abs(mean - logits_of(model_of(study), images)).max() < 1e-4  # its models are all alike
    assert len(details_of(tmp_path / "out")["weights"]) == 2


# -- verify -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported[0], tmp_path / "copy")


def with_right_hash(out, name):
    """As one would who changes a file and makes export.json fit it."""
    details = details_of(out)
    for one in (details, *details["formats"].values()):
        if name in one["files"]:
            one["files"][name] = writing_details.identity(out / name)
    (out / "export.json").write_text(json.dumps(details))


def test_an_export_as_it_was_is_confirmed(study, copy):
    code, printed, err = here("verify", str(copy), "--trust", "--data", str(study))
    assert code == 0 and printed.endswith("is as it was exported\n"), err
    for name, found in details_of(copy)["formats"].items():
        accuracy = f"{100 * found['accuracy']:.2f} %"
        assert name in printed and f"{accuracy}, at its export {accuracy}" in printed


def test_the_card_may_be_edited_and_what_is_added_is_said_to_be_unchecked(copy):
    (copy / "README.md").write_text("license: mit\n")
    (copy / "modeling.py").write_text("")
    code, printed, err = here("verify", str(copy), "--format", "timm")
    assert code == 0, err
    assert "; not run: onnx, onnx-int8, pt2" in printed and "--data measures it again" in printed
    assert "also holds modeling.py, which its export.json does not list" in printed and "README" not in printed


@pytest.mark.slow
def test_images_may_be_named_by_source_and_must_be_those_of_the_study(copy, photos, tmp_path):
    code, printed, err = here("verify", str(copy), "--format", "timm", "--data", str(photos))
    assert code == 0 and "at its export" in printed, err
    code, _, err = here("verify", str(copy), "--format", "timm", "--data", str(photos), "--set", "data.split_seed=7")
    assert code == 2 and is_one_line(err) and "are not the" in err
    code, _, err = here("verify", str(copy), "--set", "data.split_seed=7")
    assert code == 2 and "add --data" in err


def changed_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "model.onnx", "model.int8.onnx", "model.pt2",
                                  "probes.safetensors", "settings.toml"])
@pytest.mark.parametrize("damage", [changed_byte, lambda path: path.write_bytes(path.read_bytes()[:-9]),
                                    lambda path: path.unlink()], ids=["a changed bit", "truncated", "missing"])
def test_a_damaged_file_is_named(copy, name, damage):
    damage(copy / name)
    code, _, err = here("verify", str(copy), "--trust")
    assert code == 1 and is_one_line(err) and f"{copy / name} is" in err


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"formats": {}}', "\x00"])
def test_a_damaged_export_json_is_named(copy, text):
    (copy / "export.json").write_text(text)
    code, _, err = here("verify", str(copy))
    assert code == 1 and is_one_line(err) and "export.json is damaged" in err


def test_weights_of_another_model_are_noticed_even_with_a_fitting_hash(study, copy):
    model = models.build(load_study(str(study)).student, classes=10, channels=3, image_size=STORED, seed=1)
    models.save_weights(model, copy / "model.safetensors")
    with_right_hash(copy, "model.safetensors")
    code, _, err = here("verify", str(copy), "--format", "timm")
    assert code == 1 and is_one_line(err) and "model.safetensors is not the model that was exported" in err


def test_a_file_that_could_run_code_is_read_only_on_trust(copy):
    code, printed, err = here("verify", str(copy))
    assert code == 2 and is_one_line(err) and "model.pt2 could run code" in err and "--trust" in err and not printed


@pytest.mark.parametrize(("part", "change", "code", "said"), [
    ("pretrained_cfg", {"url": "https://example.org/w.bin"}, 1, "sets 'url'"),
    ("pretrained_cfg", {"hf_hub_id": "owner/name"}, 1, "sets 'hf_hub_id'"),
    ("pretrained_cfg", {"anything": 1}, 1, "sets 'anything'"),
    ("model_args", {"pretrained_cfg_overlay": {"file": "/etc/passwd"}}, 1, "sets 'pretrained_cfg_overlay'"),
    ("model_args", {"checkpoint_path": "/w.bin"}, 1, "sets 'checkpoint_path'"),
    (None, {"architecture": "os:system"}, 2, "names the function 'os:system'"),
    (None, {"architecture": "hf-hub"}, 1, "a model that timm does not know"),
    (None, {"pretrained_cfg": None}, 1, "is not a model's configuration"),
])
def test_a_strangers_configuration_fetches_and_calls_nothing(copy, part, change, code, said):
    config = json.loads((copy / "config.json").read_text())
    (config[part] if part else config).update(change)
    (copy / "config.json").write_text(json.dumps(config))
    with_right_hash(copy, "config.json")
    found, _, err = here("verify", str(copy), "--format", "timm")
    assert found == code and is_one_line(err) and said in err and "config.json" in err


def test_modules_in_the_current_folder_are_not_imported(copy, monkeypatch):
    """Somebody may stand in the folder that a stranger sent."""
    for name in ("timm", "torch", "safetensors", "onnxruntime"):
        (copy / f"{name}.py").write_text("open('imported', 'w')\n")
    monkeypatch.chdir(copy)
    code, _, err = here("verify", ".", "--format", "timm", "--format", "onnx")
    assert code == 0 and not (copy / "imported").exists(), err


def test_a_strangers_graph_reads_no_other_file(copy):
    import onnx

    model = onnx.load(str(copy / "model.onnx"))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    with_right_hash(copy, "model.onnx")
    code, _, err = here("verify", str(copy), "--format", "onnx")
    assert code == 1 and is_one_line(err) and "names another file, '../secret'" in err


def test_names_that_lead_out_of_the_folder_and_links_are_refused(copy, tmp_path):
    details = details_of(copy)
    details["formats"]["timm"]["files"]["../secret"] = {"bytes": 1, "sha256": "0"}
    (copy / "export.json").write_text(json.dumps(details))
    code, _, err = here("verify", str(copy))
    assert code == 1 and "export.json is damaged" in err
    (copy / "link").symlink_to(tmp_path)
    code, _, err = here("verify", str(copy))
    assert code == 1 and is_one_line(err) and "link is neither a file nor a folder" in err


def test_what_is_no_export_is_said(study, tmp_path):
    code, _, err = here("verify", str(study))
    assert code == 2 and is_one_line(err) and "holds no export.json; name the folder that" in err
