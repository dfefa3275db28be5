"""The model card and its folder, as the Hugging Face hub, timm and transformers read them."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import HfApi, ModelCard
from synthetic import here
from test_names import NAMES, SENTENCE, write_named

from kdstudy.analysis import deployment
from kdstudy.config.load import load_study
from kdstudy.export.deployment import figures
from kdstudy.export.header import header, hub_data_set
from kdstudy.store.files import write_json
from kdstudy.trainables.settings import ModelSettings

pytestmark = pytest.mark.usefixtures("apart")


@pytest.fixture(scope="module")
def exported(synthetic_study, tmp_path_factory):
    """A folder with the student of a study whose costs are known."""
    home = tmp_path_factory.mktemp("card")
    folder = shutil.copytree(synthetic_study, home / "study")
    write_json(folder / deployment.FILE, figures(load_study(str(folder)), folder))
    code, _, err = here("export", str(folder), str(home / "student"))
    assert code == 0, err
    return home / "student"


def test_the_header_is_read_back_as_it_was_meant(exported):
    card = ModelCard.load(exported / "README.md")
    (result,) = card.data.eval_results
    found = json.loads((exported / "export.json").read_text())["formats"]["timm"]
    assert (result.task_type, result.dataset_type, result.metric_type) == ("image-classification", "digits", "accuracy")
    assert result.metric_value == pytest.approx(found["accuracy"], abs=1e-6) and result.dataset_split == "test"
    assert result.dataset_name == "digits: 360 test images of 10 classes"
    assert card.data.library_name == "timm" and card.data.pipeline_tag == "image-classification"
    assert "knowledge-distillation" in card.data.tags and card.data.base_model is None and card.data.datasets is None
    again = ModelCard(str(card))
    assert again.data.eval_results == card.data.eval_results and again.data.to_dict() == card.data.to_dict()


def test_the_card_has_what_a_reader_must_know(exported):
    card = ModelCard.load(exported / "README.md")
    for text in ("| teacher | resnet18 |", "loss hinton, temperature 8, alpha 0.1, lr 0.0005", "Scope:",
                 "1077 training, 108 of them seen by the student, 360 validation, 360 test", "timm 1.",
                 "## Cost and quality", "| latency, 32 images |", "local-dir:student"):
        assert text in card.text, text
    assert card.data.license is None and "License: none is chosen yet" in card.text  # nobody but its owner can
    rows = [line for line in card.text.splitlines() if line.startswith("|") and "latency" in line]
    assert len(rows) == 2 and all(row.count("|") == 5 for row in rows)


def described(**settings):
    """What the header of a model with these settings says, whatever its weights."""
    deployable = SimpleNamespace(settings=ModelSettings(**settings), splits=SimpleNamespace(
        test=range(7), class_names=("a", "b")))
    details = {"key": {"confirm": "confirm_baseline-0123"}, "formats": {"timm": {"accuracy": 0.5}}}
    return ModelCard(header(load_study("cifar100"), deployable, details, "out")).data


def test_pretrained_weights_are_the_base_model():
    data = described(model="resnet18.a1_in1k", pretrained=True)
    assert data.base_model == "timm/resnet18.a1_in1k" and data.to_dict()["base_model_relation"] == "finetune"
    assert data.datasets == ["cifar100"] and "knowledge-distillation" not in data.tags
    assert described(model="resnet18.a1_in1k").base_model is None
    assert described(model="resnet18.a1_in1k", pretrained="weights.safetensors").base_model is None
    own = described(model="package.module:function")
    assert own.library_name is None and "timm" not in own.tags


@pytest.mark.parametrize(("source", "name"), [
    ("cifar100", "cifar100"), ("digits", None), ("/home/someone/photos", None), ("photos", None),
    ("s3://bucket/photos", None), ("hf://datasets/owner/name", "owner/name"),
    ("hf://datasets/owner/name@main/data", "owner/name"), ("hf://datasets/owner/name/data", "owner/name")])
def test_only_a_data_set_of_the_hub_is_named_as_one(source, name):
    assert hub_data_set(source) == name


def test_names_are_safe_in_a_header(tmp_path):
    folder = write_named(tmp_path / "[red]a|b[/x] <b> 'q\" 🙂: #", NAMES, SENTENCE)
    target = tmp_path / "out: [x] # 'q\" <b> | \u202e🙂"
    code, _, err = here("export", str(folder), str(target))
    assert code == 0 and not err, err
    card = ModelCard.load(target / "README.md")
    (result,) = card.data.eval_results
    assert card.data.model_name == target.name
    assert result.dataset_name == "images [bold].npz: 360 test images of 10 classes"
    assert result.dataset_type == "images-bold-.npz" and str(tmp_path) not in str(card.data)
    assert "<" not in "".join(card.text.split("```")[::2])  # outside of code
    assert "&lt;img src=x onerror=alert(1)> a\\|b" in card.text


def predictions_of(net, count=6):
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return net(images)


def test_timm_knows_what_images_the_folder_wants(exported):
    config = json.loads((exported / "config.json").read_text())["pretrained_cfg"]
    for found in (timm.data.resolve_data_config(pretrained_cfg=config),
                  timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{exported}", pretrained=True))):
        assert tuple(found["input_size"]) == (1, 8, 8) and found["interpolation"] == "bicubic"
        assert tuple(found["mean"]) == (0.5,) == tuple(found["std"]) and found["crop_pct"] == 1.0


def test_transformers_reads_the_folder(exported, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = transformers.AutoConfig.from_pretrained(exported, local_files_only=True)
    assert config.model_type == "timm_wrapper" and config.num_labels == 10
    assert config.id2label == {number: str(number) for number in range(10)}
    net = transformers.AutoModelForImageClassification.from_pretrained(exported, local_files_only=True).eval()
    expected = predictions_of(timm.create_model(f"local-dir:{exported}", pretrained=True).eval())
    torch.testing.assert_close(predictions_of(lambda images: net(images).logits), expected)
    processor = transformers.AutoImageProcessor.from_pretrained(exported, local_files_only=True)
    assert tuple(processor.data_config["input_size"]) == (1, 8, 8)


def test_timm_pushes_the_model_and_leaves_its_card(exported, monkeypatch):
    sent = {}

    def upload(self, *, repo_id, folder_path, **_):
        sent.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()}, repo_id=repo_id)

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: SimpleNamespace(repo_id=f"me/{repo_id}"))
    monkeypatch.setattr(HfApi, "file_exists", lambda self, **_: True)  # our card, uploaded before
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    net = timm.create_model(f"local-dir:{exported}", pretrained=True).eval()
    timm.models.push_to_hf_hub(net, "student", safe_serialization=True)
    assert sent["repo_id"] == "me/student" and set(sent) == {"repo_id", "config.json", "model.safetensors"}
    pushed, own = json.loads(sent["config.json"]), json.loads((exported / "config.json").read_text())
    assert pushed["architecture"] == own["architecture"] and pushed["num_classes"] == own["num_classes"]
    for name in ("input_size", "mean", "std", "interpolation", "crop_pct"):
        assert pushed["pretrained_cfg"][name] == own["pretrained_cfg"][name]
    (exported.parent / "pushed").mkdir()
    for name in ("config.json", "model.safetensors"):
        (exported.parent / "pushed" / name).write_bytes(sent[name])
    again = timm.create_model(f"local-dir:{exported.parent}/pushed", pretrained=True).eval()
    np.testing.assert_array_equal(predictions_of(again), predictions_of(net))
