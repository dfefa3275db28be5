"""Models by timm name, function or folder, and the weights they begin with."""

import json
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from kdstudy.trainables import models
from kdstudy.trainables.settings import ModelSettings

NET = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
VIT = {"patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2}
SHAPE = {"classes": 5, "channels": 3, "image_size": 32}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_models", raising=False)


def state(name, **arguments):
    torch.manual_seed(3)
    return timm.create_model(name, **arguments).state_dict()


@pytest.mark.parametrize("file", ["weights.safetensors", "weights.pth", "checkpoint.pth"])
def test_training_begins_with_a_local_files_weights_and_a_head_of_its_own(tmp_path, file):
    given = state("resnet18", num_classes=1000, **NET)
    if file.endswith("safetensors"):
        save_file(given, tmp_path / file)
    else:
        torch.save({"state_dict": given, "epoch": 3} if file.startswith("checkpoint") else given, tmp_path / file)
    settings = ModelSettings(model="resnet18", args=NET, pretrained=str(tmp_path / file))
    weights = models.pretrained_weights(settings, **SHAPE)
    assert not any(name.startswith("fc.") for name in weights)
    one, two = (models.build(settings, **SHAPE, seed=seed, weights=weights).net.state_dict() for seed in (1, 2))
    for name, tensor in one.items():
        if name.startswith("fc."):
            assert tensor.shape[0] == 5
        else:
            assert torch.equal(tensor, given[name]) and torch.equal(tensor, two[name])
    assert not torch.equal(one["fc.weight"], two["fc.weight"])


def test_weights_of_as_many_classes_still_get_a_new_head(tmp_path):
    save_file(state("resnet18", num_classes=1000, **NET), tmp_path / "w.safetensors")
    settings = ModelSettings(model="resnet18", args=NET, pretrained=str(tmp_path / "w.safetensors"))
    assert not any(name.startswith("fc.") for name in models.pretrained_weights(settings, **SHAPE | {"classes": 1000}))


def test_another_image_size_and_grey_images_are_fitted_by_timm(tmp_path):
    given = state("vit_tiny_patch16_224", img_size=32, num_classes=10, **VIT)
    save_file(given, tmp_path / "w.safetensors")
    settings = ModelSettings(model="vit_tiny_patch16_224", args=VIT, pretrained=str(tmp_path / "w.safetensors"),
                             image_size=16)
    weights = models.pretrained_weights(settings, classes=5, channels=1, image_size=32)
    assert weights["pos_embed"].shape == (1, 17, 24) and given["pos_embed"].shape == (1, 65, 24)
    expected = given["patch_embed.proj.weight"].sum(1, keepdim=True)
    np.testing.assert_allclose(weights["patch_embed.proj.weight"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("file", "content", "said"), [
    ("missing.pth", None, "missing.pth does not exist"),
    ("other.safetensors", {"a": torch.zeros(2)}, "the file must hold weights of resnet18"),
    ("text.safetensors", "no weights", "the file must hold weights of resnet18"),
])
def test_weights_that_do_not_fit_are_one_line(tmp_path, file, content, said):
    if isinstance(content, dict):
        save_file(content, tmp_path / file)
    elif content:
        (tmp_path / file).write_text(content)
    with pytest.raises(ValueError) as caught:
        models.pretrained_weights(ModelSettings(model="resnet18", args=NET, pretrained=file), **SHAPE)
    message = str(caught.value)
    assert message.startswith(f"pretrained = '{file}'") and said in message and "\n" not in message


def test_a_file_that_would_run_code_is_not_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "sprung"), "w")

    torch.save({"state_dict": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(ValueError, match="no weights for resnet18"):
        models.pretrained_weights(ModelSettings(model="resnet18", args=NET, pretrained="trap.pth"), **SHAPE)
    assert not (tmp_path / "sprung").exists()


def test_without_a_hub_it_says_what_to_do(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refuse)
    settings = ModelSettings(model="vit_tiny_patch16_224.augreg_in21k_ft_in1k", pretrained=True)
    with pytest.raises(ValueError, match=r"no route to host.*give a local file instead"):
        models.pretrained_weights(settings, classes=5, channels=3, image_size=224)


FUNCTION = """
from torch import nn
def small(num_classes, in_chans, width=4):
    return nn.Sequential(nn.Conv2d(in_chans, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(width, num_classes))
"""


def test_a_function_makes_a_model(tmp_path):
    (tmp_path / "my_models.py").write_text(FUNCTION)
    settings = ModelSettings(model="my_models:small", args={"width": 6})
    models.check(settings, **SHAPE)
    model = models.build(settings, **SHAPE, seed=1)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 5) and model.mean == (0.5, 0.5, 0.5)
    save_file({name: tensor + 1 for name, tensor in model.net.state_dict().items()}, tmp_path / "w.safetensors")
    weights = models.pretrained_weights(
        settings.model_copy(update={"pretrained": str(tmp_path / "w.safetensors")}), **SHAPE)
    again = models.build(settings, **SHAPE, seed=1, weights=weights)
    assert torch.equal(again.net[0].weight, model.net[0].weight + 1)


@pytest.mark.parametrize(("name", "said"), [
    ("nowhere:model", "model = 'nowhere:model' cannot be imported: No module named 'nowhere'"),
    ("my_models:large", "cannot be imported: module 'my_models' has no attribute 'large'"),
    ("my_models:number", "is not a function"),
    ("my_models:words", "returns a str, not a torch.nn.Module"),
    ("my_models:features", "returns logits of the shape (2, 8, 32, 32) for 2 images and"),
    ("local-dir:exports/teacher", "is the address of a model, not its name; for a trained teacher set teacher.trained"),
])
def test_a_function_that_is_not_there_is_one_line(tmp_path, name, said):
    (tmp_path / "my_models.py").write_text(
        FUNCTION + "number = 3\ndef words(**arguments): return 'a model'\n"
        "def features(num_classes, in_chans): return nn.Conv2d(in_chans, 8, 3, padding=1)\n")
    with pytest.raises(ValueError) as caught:
        models.check(ModelSettings(model=name), **SHAPE)
    assert said in str(caught.value)


@pytest.mark.parametrize("module", ["analysis", "study", "trainables"])
def test_a_module_of_the_users_own_may_be_called_what_folders_here_are_called(tmp_path, monkeypatch, module):
    monkeypatch.delitem(sys.modules, module, raising=False)
    (tmp_path / f"{module}.py").write_text(FUNCTION)
    models.check(ModelSettings(model=f"{module}:small"), **SHAPE)
    del sys.modules[module]


@pytest.mark.parametrize("name", ["torch.hub:load", "os:system", "timm.models:load_checkpoint", "kdstudy.train:train"])
def test_functions_of_packages_without_models_are_refused(name):
    with pytest.raises(ValueError, match=f"^model = '{name}': functions of '.*' are refused"):
        models.check(ModelSettings(model=name), **SHAPE)


@pytest.mark.parametrize(("name", "kind"), [
    ("resnet18", ("CNN", "ResNet")), ("vit_tiny_patch16_224", ("Transformer", "VisionTransformer")),
    ("convnext_atto", ("CNN", "ConvNeXt")), ("swin_tiny_patch4_window7_224", ("Transformer", "SwinTransformer")),
    ("mixer_s16_224", ("MLP", "MlpMixer")), ("seresnet18", ("CNN", "ResNet")),
    ("cait_xxs24_224", ("Transformer", "Cait")), ("twins_pcpvt_small", ("Transformer", "Twins")),
    ("deit_tiny_patch16_224", ("Transformer", "VisionTransformer")), ("efficientnet_b0", ("CNN", "EfficientNet")),
    ("resnest14d", ("CNN", "ResNet")),
])
def test_the_kind_of_a_model(name, kind):
    assert models.kind_of(ModelSettings(model=name), classes=5, channels=3, image_size=224) == kind


def test_a_folder_of_timms_is_a_trained_model(tmp_path):
    from timm.models import save_for_hf

    net = timm.create_model("resnet18", num_classes=3, **NET)
    save_for_hf(net, str(tmp_path / "t"), safe_serialization=True, model_config={"label_names": ["a", "b", "c"]},
                model_args={"layers": NET["layers"], "channels": NET["channels"]})
    trained = models.read_trained(tmp_path / "t")
    assert trained.classes == 3 and trained.class_names == ("a", "b", "c") and trained.model.image_size == 224
    again = models.build(trained.model, classes=3, channels=3, image_size=32, weights=trained.weights)
    assert all(torch.equal(value, again.net.state_dict()[name]) for name, value in net.state_dict().items())


def test_a_given_model_must_be_what_its_weights_are_of(tmp_path):
    from timm.models import save_for_hf

    net = timm.create_model("resnet18", num_classes=5, **NET)
    save_for_hf(net, str(tmp_path / "t"), safe_serialization=True, model_args=NET)
    trained = models.read_trained(tmp_path / "t")
    models.check_trained(trained, **SHAPE)
    with pytest.raises(ValueError, match=r"its weights do not fit a resnet18 for images of 1 channels: conv1"):
        models.check_trained(trained, **SHAPE | {"channels": 1})
    renamed = {f"module.{name}": array for name, array in trained.weights.items()}
    with pytest.raises(ValueError, match="its weights do not fit a resnet18"):
        models.check_trained(replace(trained, weights=renamed), **SHAPE)


def test_a_folder_calls_no_function_that_the_study_does_not_name(tmp_path):
    (tmp_path / "my_models.py").write_text("open('sprung', 'w').close()\n" + FUNCTION)
    config = {"architecture": "my_models:small", "model_args": {}, "num_classes": 5,
              "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5], "std": [0.5]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"module.x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"set teacher\.function = 'my_models:small'"):
        models.read_trained(tmp_path)
    assert not (tmp_path / "sprung").exists()
    trained = models.read_trained(tmp_path, "my_models:small")
    assert trained.model.model == "my_models:small"
    assert set(trained.weights) == {"module.x"}  # a model may have a part of that name: in a folder nothing wraps it


@pytest.mark.parametrize(("files", "said"), [
    ({}, "holds no config.json"),
    ({"study.toml": ""}, "it is a study; `kdstudy export .* --model teacher` writes the folder"),
    ({"config.json": "{}"}, "holds no model.safetensors"),
    ({"config.json": "{}", "model.safetensors": "x"}, "it cannot be read as a model"),
])
def test_a_folder_without_a_model_is_one_line(tmp_path, files, said):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=said):
        models.read_trained(tmp_path)


def test_a_hub_that_does_not_answer_is_said_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    settings = ModelSettings(model="vit_tiny_patch16_224.augreg_in21k_ft_in1k", pretrained=True)
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"^pretrained = true: no weights for vit_tiny.*: their hub does not "
                                         r"answer .*; give a local file instead"):
        models.check_hub(settings)
    assert time.monotonic() - started < models.pretrained.HUB_SECONDS + 1
    models.check_hub(settings.model_copy(update={"pretrained": False}))
