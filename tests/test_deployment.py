"""What a deployer wants to see: latency, sizes and calibration, and logits that are scaled by one temperature."""

import copy
import json
import math
import shutil
import time
from types import SimpleNamespace

import browser as driver
import numpy as np
import pytest
import timm
import torch
from browser import NARROW, Browser
from synthetic import here, is_one_line
from torch import nn

from kdstudy.analysis import deployment, report
from kdstudy.analysis.exhibits import catalogue
from kdstudy.analysis.figures.deployment import accuracy_by_latency
from kdstudy.analysis.predictions import calibration_error, likelihood_loss
from kdstudy.analysis.significance import accuracy_interval, wilson_interval
from kdstudy.analysis.study_analysis import StudyAnalysis
from kdstudy.analysis.study_files import StudyFiles
from kdstudy.config.load import load_study
from kdstudy.errors import UserError
from kdstudy.export import calibration, latency
from kdstudy.export import deployment as deploying
from kdstudy.export.average import MeanOfLogits
from kdstudy.export.deployment import figures
from kdstudy.export.formats.base import Deployable
from kdstudy.stages.order import names
from kdstudy.stages.outputs import Deployment
from kdstudy.store.files import write_json
from kdstudy.trainables import models
from kdstudy.trainables.images import ImageSet
from kdstudy.trainables.settings import ModelSettings

# -- calibration ------------------------------------------------------------------------------------------------------


def test_the_calibration_error_of_a_case_made_by_hand():
    confidence = np.array([0.9] * 10 + [0.5] * 10)
    right = np.array([True] * 6 + [False] * 4 + [True] * 7 + [False] * 3)
    assert calibration_error(confidence, right) == pytest.approx(0.5 * 30 + 0.5 * 20)  # 90 but 60 %, 50 but 70 %
    assert calibration_error(np.full(4, 0.75), np.array([True, True, True, False])) == pytest.approx(0)


def test_the_likelihood_of_a_case_made_by_hand():
    logits = np.array([[0.0, math.log(3)], [math.log(3), 0.0]], dtype=np.float32)
    assert likelihood_loss(logits, np.array([1, 0])) == pytest.approx(-math.log(0.75))
    assert likelihood_loss(logits, np.array([0, 0])) == pytest.approx(-0.5 * math.log(0.25 * 0.75))
    assert likelihood_loss(1e4 * logits, np.array([1, 0])) == pytest.approx(0)  # without overflow
    assert likelihood_loss(2 * logits, np.array([1, 0]), temperature=2.0) == pytest.approx(-math.log(0.75))


def drawn(count=20_000, classes=5, seed=0):
    """Logits, and labels drawn with the probabilities that they say."""
    generator = np.random.default_rng(seed)
    logits = 2 * generator.normal(size=(count, classes))
    return logits, (logits + generator.gumbel(size=logits.shape)).argmax(1)


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_the_temperature_by_which_logits_were_multiplied_is_found(factor):
    logits, labels = drawn()
    found = calibration.fit_temperature(factor * logits, labels)
    assert found == pytest.approx(factor, rel=0.03)
    assert found == pytest.approx(factor * calibration.fit_temperature(logits, labels), rel=1e-3)
    scores = [calibration.Scores.of(factor * logits, labels, divisor) for divisor in (1.0, found)]
    assert scores[1].calibration_error < 0.01 and scores[1].nll <= scores[0].nll


def test_no_temperature_is_found_where_none_is_best():
    logits, _ = drawn(200)
    assert calibration.fit_temperature(logits, logits.argmax(1)) is None  # the smaller, the better
    assert calibration.fit_temperature(logits, logits.argmin(1)) is None  # the larger, the better


SMALL_VIT = {"depth": 2, "embed_dim": 24, "num_heads": 2, "patch_size": 8}
SCALABLE = [ModelSettings(model="resnet18", args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}, image_size=32),
            ModelSettings(model="vit_tiny_patch16_224", args=SMALL_VIT, image_size=32),
            ModelSettings(model="deit_tiny_distilled_patch16_224", args=SMALL_VIT, image_size=32),  # averages two heads
            ModelSettings(model="mobilenetv3_small_050", image_size=32),
            ModelSettings(model="resnet18", args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8],
                                                  "num_classes": 4}, image_size=32)]


def deployable_of(model, settings, classes=4, count=80):
    """A model on random images, whose labels are drawn with its own probabilities at another temperature."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 1, 32, 32)).astype(np.uint8)
    with torch.no_grad():
        logits = torch.cat([model(part.float() / 255) for part in torch.from_numpy(images).split(16)]).numpy()
    labels = (2 * logits / logits.std() + generator.gumbel(size=logits.shape)).argmax(1)
    both = ImageSet(images, labels)
    return Deployable(model, settings, SimpleNamespace(validation=both, test=both)), logits


@pytest.mark.parametrize("settings", SCALABLE, ids=lambda settings: settings.model)
def test_scaling_the_last_layer_divides_all_logits(settings):
    model = models.build(settings, classes=4, channels=1, image_size=32).eval()
    for name in sorted(models.head_names(model.net)):
        nn.init.normal_(model.net.get_parameter(name))  # untrained heads are nearly zero
    deployable, logits = deployable_of(model, settings)
    scaling = calibration.scale(deployable, logits)
    with torch.no_grad():
        after = model(torch.from_numpy(deployable.splits.test.images).float() / 255).numpy()
    np.testing.assert_allclose(after, logits / scaling.temperature, atol=1e-4 * abs(logits).max())
    assert (after.argmax(1) == logits.argmax(1)).all() and scaling.temperature != pytest.approx(1, abs=0.05)
    before, then = scaling.validation
    assert then.nll < before.nll and scaling.as_dict()["test"]["after"]["nll"] == then.nll


def test_the_mean_of_several_models_logits_can_be_scaled():
    members = [models.build(SCALABLE[0], classes=4, channels=1, image_size=32, seed=seed).eval() for seed in (0, 1)]
    deployable, logits = deployable_of(MeanOfLogits(members).eval(), SCALABLE[0])
    scaling = calibration.scale(deployable, logits)
    with torch.no_grad():
        after = deployable.model(torch.from_numpy(deployable.splits.test.images).float() / 255).numpy()
    np.testing.assert_allclose(after, logits / scaling.temperature, atol=1e-4 * abs(logits).max())


class Bounded(nn.Module):
    """A model whose logits are not linear in its last layer."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(32 * 32, 4)

    def forward(self, images):
        return 3 * torch.tanh(self.fc(images.flatten(1)))


def test_a_model_that_does_not_scale_with_its_last_layer_is_refused():
    torch.manual_seed(0)
    model = models.Classifier(Bounded(), (0.5,), (0.5,), 32).eval()
    deployable, logits = deployable_of(model, SCALABLE[0])
    with pytest.raises(UserError, match="--calibrate: the logits of resnet18 do not scale with its last layer"):
        calibration.scale(deployable, logits)


def test_a_calibrated_export_says_so_and_predicts_the_same(finished, tmp_path):
    folder = finished[0]
    nets = []
    for words in ((), ("--calibrate",)):
        code, out, err = here("export", str(folder), str(tmp_path / "out"), *words)
        assert code == 0, err
        nets.append(timm.create_model(f"local-dir:{tmp_path}/out", pretrained=True).eval())
    found = json.loads((tmp_path / "out" / "export.json").read_text())["calibration"]
    images = torch.rand(16, 1, 8, 8)
    with torch.no_grad():
        before, after = (net(images) for net in nets)
    torch.testing.assert_close(after, before / found["temperature"], rtol=1e-3, atol=1e-4)
    assert found["validation"]["after"]["nll"] <= found["validation"]["before"]["nll"]
    error = f"{100 * found['test']['after']['calibration_error']:.1f}"
    assert f"logits divided by {found['temperature']:.3g}" in out and f"{error} after" in out
    assert f"calibration error is {error} points" in (tmp_path / "out" / "README.md").read_text()


def test_images_that_settle_no_temperature_are_said_in_one_line(synthetic_study, tmp_path):
    code, _, err = here("export", str(synthetic_study), str(tmp_path / "out"), "--calibrate")
    assert code == 2 and is_one_line(err) and "validation images settle no temperature" in err
    assert not (tmp_path / "out").exists()


# -- intervals --------------------------------------------------------------------------------------------------------


def test_an_accuracys_interval_grows_with_what_varies():
    generator = np.random.default_rng(0)
    right = generator.random((1, 400)) < 0.8
    low, high = accuracy_interval(right)
    assert (low, high) == wilson_interval(right.mean(), 400)
    same = accuracy_interval(np.repeat(right, 5, axis=0))  # seeds that do not differ tell nothing new
    assert same[0] <= low and high <= same[1]
    seeds = np.stack([generator.random(400) < share for share in (0.7, 0.8, 0.9)])
    wider = accuracy_interval(seeds)
    assert wider[0] < low and high < wider[1] and 0 <= wider[0] < seeds.mean() < wider[1] <= 1
    assert accuracy_interval(np.ones((3, 50), dtype=bool))[1] == 1.0


# -- latency ----------------------------------------------------------------------------------------------------------


def timed_models(called, **seconds):
    def model(name, each):
        def predict(images):
            called.append((name, len(images)))
            time.sleep(each)
        return predict, (1, 4, 4)

    return {name: model(name, each) for name, each in seconds.items()}


def test_models_take_turns_and_their_ratio_is_that_of_their_times(monkeypatch):
    monkeypatch.setattr(latency, "SHORTEST", 1e-6)
    called = []
    found = latency.measure(timed_models(called, long=0.03, short=0.01), torch.device("cpu"))
    alone = [name for name, size in called if size == 1][4:]  # each warms up twice
    assert alone == ["long", "short"] * (len(alone) // 2) and len(alone) // 2 == found.of("long", 1).repetitions
    assert found.of("long", 32).median == pytest.approx(30, rel=0.5)
    ratio = found.ratio("long", "short", 1)
    assert ratio.low <= ratio.median <= ratio.high and 1.5 < ratio.median < 5


def test_what_would_take_too_long_is_left_out_and_said(monkeypatch):
    monkeypatch.setattr(latency, "MOST_SECONDS", 1.5)
    monkeypatch.setattr(latency, "SECONDS", {1: 0.1, 32: 0.1})
    called = []
    found = latency.measure(timed_models(called, slow=0.1, quick=0.001), torch.device("cpu"))
    assert found.of("slow", 1) and found.of("slow", 32) is None and found.ratio("slow", "quick", 32) is None
    assert found.reasons["slow", 32] == "a batch of 32 was not measured: a pass would take about 3 s here"
    assert found.of("quick", 32) and ("slow", 32) not in called


def test_a_model_that_cannot_compute_a_batch_is_no_failure():
    def predict(images):
        if len(images) > 1:
            raise RuntimeError("CUDA out of memory.\nTried to allocate")

    found = latency.measure({"large": (predict, (1, 4, 4))}, torch.device("cpu"))
    assert found.of("large", 1) and found.of("large", 32) is None
    assert found.reasons["large", 32].startswith("a batch of 32 cannot be computed here: CUDA out of memory")


# -- in a study -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(synthetic_study, tmp_path_factory):
    """A study with its costs, and what was measured."""
    folder = shutil.copytree(synthetic_study, tmp_path_factory.mktemp("measured") / "study")
    content = figures(load_study(str(folder)), folder)
    write_json(folder / deployment.FILE, content)
    return folder, content


@pytest.fixture
def copied(measured, tmp_path):
    return shutil.copytree(measured[0], tmp_path / "study")


def test_the_costs_are_those_of_the_studys_models(measured):
    folder, content = measured
    assert deployment.deployment(StudyFiles(folder)) == json.loads(json.dumps(content))
    teacher, student = content["costs"]["teacher"], content["costs"]["student"]
    for stage, cost in (("teacher-*", teacher), ("confirm-*/runs/000", student)):
        (weights,) = folder.glob(f"{stage}/model.safetensors")
        assert cost["bytes"] == weights.stat().st_size
    assert student["parameters"] == json.loads(next(folder.glob("confirm-*/done.json")).read_text())["model_parameters"]
    assert teacher["multiply_adds"] > student["multiply_adds"] > student["parameters"] / 2
    for batch in ("1", "32"):
        own, other = (cost["latency"][batch]["median"] for cost in (student, teacher))
        assert content["speed_up"][batch]["median"] == pytest.approx(other / own, rel=0.5)
    found = content["quality"]["distilled"]
    right = StudyFiles(folder).confirmed["distilled", "tuned"]
    assert found["accuracy"] == pytest.approx(100 * right.mean()) and found["low"] < found["accuracy"] < found["high"]
    assert found["nll"] == pytest.approx(math.log(10), abs=0.3)  # of models that know nothing
    hardware = content["measured"]["hardware"]
    assert hardware and SimpleNamespace(**content["measured"]).threads == torch.get_num_threads()


def test_only_a_study_that_concludes_something_has_costs():
    assert "deployment" not in names(load_study("digits", smoke=True))
    assert names(load_study("digits"))[-3:] == ("deployment", "report", "export")


def test_they_are_measured_once(copied, monkeypatch):
    config = load_study(str(copied))
    (copied / deployment.FILE).unlink()
    assert Deployment().write(config, copied)
    monkeypatch.setattr(latency, "measure", lambda *_: pytest.fail("measured again"))
    written = (copied / deployment.FILE).read_bytes()
    assert not Deployment().write(config, copied)
    assert here("report", str(copied))[0] == 0 and (copied / deployment.FILE).read_bytes() == written
    assert "id=s-deployment" in (copied / "results" / "report.html").read_text()
    code, _, err = here("pack", str(copied), str(copied.parent / "packed"))
    assert code == 0 and (copied.parent / "packed" / deployment.FILE).read_bytes() == written, err


def test_costs_that_cannot_be_measured_cost_the_study_nothing_else(copied, monkeypatch):
    def fails(*_):
        raise RuntimeError("this processor\nhas no clock")

    (copied / deployment.FILE).unlink()
    (copied / "results" / "report.html").unlink(missing_ok=True)
    monkeypatch.setattr("kdstudy.driver._Driver._run_stages", lambda self: False)
    monkeypatch.setattr(Deployment, "is_wanted", lambda *_: True)  # a trial run has none
    monkeypatch.setattr(Deployment, "write", fails)
    code, printed, err = here("run", str(copied), "--until", "report")
    assert code == 0, err
    assert "deployment could not be written: this processor has no clock" in " ".join((printed + err).split())
    assert (copied / "results" / "report.html").is_file() and not (copied / deployment.FILE).exists()


@pytest.mark.parametrize("change", ["none", "damaged", "of other models", "not a number", "without a table"])
def test_a_report_without_a_fitting_file_has_no_costs(copied, change):
    content, path = json.loads((copied / deployment.FILE).read_text()), copied / deployment.FILE
    if change == "of other models":
        content["key"]["teacher"] = "teacher-of-another"
    elif change == "not a number":
        content["costs"]["student"]["parameters"] = "<b>many</b>"
    elif change == "without a table":
        del content["quality"]["distilled"]
    path.write_text("{" if change == "damaged" else json.dumps(content))
    if change == "none":
        path.unlink()
    assert deployment.deployment(StudyFiles(copied)) is None
    assert not catalogue.exhibit("deployment", StudyAnalysis.of(copied)).applies


def test_of_a_teacher_that_is_a_file_of_logits_what_can_be_said_is_said(measured):
    content = copy.deepcopy(measured[1])
    content["costs"]["teacher"] |= {"models": 0, "parameters": None, "multiply_adds": None, "bytes": None,
                                    "latency": {}, "reason": "only its logits are known"}
    content["speed_up"] = dict.fromkeys(content["speed_up"])
    rows = {row[0]: row[1:] for row in deployment.table(content)}
    assert rows["parameters"][0] == "–" and rows["parameters"][1] == rows["parameters"][2] != "–"
    assert rows["… speed-up over the teacher"] == ["", "–", "–"] and rows["test accuracy"][0].endswith("%")
    assert "Of the teacher, only its logits are known." in deployment.explanation(content)
    figure = accuracy_by_latency(content)
    assert len(figure.data) == 2 and len(figure.layout.shapes) == 1
    content["costs"]["student"]["latency"] = {}
    assert accuracy_by_latency(content) is None


def test_several_teachers_are_one(measured):
    content = copy.deepcopy(measured[1])
    content["costs"]["teacher"]["models"] = 3
    assert "The teacher is 3 models, which run one after the other." in deployment.explanation(content)


def test_what_a_file_says_adds_nothing_to_a_page(copied):
    content = json.loads((copied / deployment.FILE).read_text())
    content["measured"]["hardware"] = "<script>alert(1)</script> a|b"
    content["costs"]["teacher"]["reason"] = "<img src=x onerror=alert(1)>"
    write_json(copied / deployment.FILE, content)
    assert here("report", str(copied))[0] == 0
    page = (copied / "results" / "report.html").read_text()
    assert "<script>alert(1)" not in page and "<img src=x" not in page and "&lt;script&gt;alert(1)" in page
    code, _, err = here("export", str(copied), str(copied.parent / "out"))
    card = (copied.parent / "out" / "README.md").read_text()
    assert code == 0 and not err and "<script" not in card and "<img" not in card and "a\\|b" in card


@pytest.mark.skipif(driver.EXECUTABLE is None, reason="needs Chromium or Chrome")
def test_the_page_shows_them_without_a_defect(measured):
    report.build(measured[0])
    with Browser() as started:
        for width, dark in ((1280, False), (NARROW, True)):
            with started.page(width, dark) as page:
                page.open(measured[0] / "results" / "report.html")
                assert page.defects() == []
                section = "document.querySelector('#s-deployment')"
                assert page.evaluate(f"{section}.querySelectorAll('tbody tr').length") == 11
                assert page.evaluate(f"{section}.querySelectorAll('.scatterlayer .trace').length") == 3
                box = f"{section}.querySelector('.trials')"
                assert page.evaluate(f"{box}.scrollWidth <= {box}.clientWidth + 1"), "the table hides a column"


def test_the_functions_of_a_teacher_are_called_only_if_the_settings_name_them():
    config = load_study("digits", ("teacher.model=nets:big", "teacher.args={}"))
    model = config.teacher.model_settings.model_dump()
    study = SimpleNamespace(teacher="main", teacher_done=lambda: {"members": [{"model": model}]})
    assert [one.model for one in deploying._teacher_settings(config, study)] == ["nets:big"]
    model["model"] = "nets:other"
    with pytest.raises(UserError, match="the function nets:other, which is called only if the study names it"):
        deploying._teacher_settings(config, study)
