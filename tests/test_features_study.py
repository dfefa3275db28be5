"""Studies whose losses read features or a distillation token: what is refused, what names their folders, what they
store, and two whole ones."""

import json

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from running import kdstudy, results_of, with_set
from safetensors import safe_open
from synthetic import here, is_one_line

from kdstudy.analysis.study_files import StudyFiles
from kdstudy.config.load import load_study
from kdstudy.config.models import check_read
from kdstudy.errors import UserError
from kdstudy.planning.room import room_needed
from kdstudy.stages.teacher import TeacherStage
from kdstudy.store.storage import Storage
from kdstudy.study import Study
from kdstudy.trainables import data
from kdstudy.trainables.settings import ModelSettings
from kdstudy.tune.cluster import Share

CHOICE = "search.loss={choice=['hinton','features']}"
SHAPE = {"classes": 10, "channels": 1, "image_size": 8}
DEIT = ("student.model=deit_tiny_distilled_patch16_224",
        "student.args={patch_size=4, embed_dim=24, depth=1, num_heads=2}")
SHORT = ("search.trials=3", "search.baseline_trials=1", "search.protected=1", "search.baseline_protected=0",
         "confirm.seeds=1", "teacher.epochs=1", "train.epochs=4", "resources.concurrent=1")
NETS = '''
from torch import nn

def plain(num_classes, in_chans, **options):
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * in_chans, num_classes))

class Pooling(nn.Module):
    def __init__(self, num_classes, in_chans):
        super().__init__()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(4), nn.Linear(16 * in_chans, num_classes)
    def forward_features(self, images):
        return self.pool(images)
    def forward_head(self, known, pre_logits=False):
        return known.flatten(1) if pre_logits else self.fc(known.flatten(1))
    def forward(self, images):
        return self.forward_head(self.forward_features(images))

class Maps(Pooling):
    def forward_head(self, known, pre_logits=False):
        return known if pre_logits else self.fc(known.flatten(1))
'''


@pytest.fixture
def study_of(tmp_path, monkeypatch):
    """The digits study with other settings, as if its teacher were trained."""
    monkeypatch.setattr(TeacherStage, "done", {"weights": "0" * 16, "members": []})
    monkeypatch.setattr(TeacherStage, "members", lambda stage: ())
    return lambda *settings: Study(load_study("digits", settings), Storage(tmp_path / "digits"))


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


@pytest.fixture
def nets(tmp_path, monkeypatch):
    (tmp_path / "nets_of_features.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return "nets_of_features:{}".format


def test_a_model_without_pooled_features_is_refused_by_its_setting_with_the_remedy(nets):
    config = load_study("digits", (CHOICE,))
    fine = {"teacher": config.teacher.model_settings}
    check_read(config, "teacher", fine, **SHAPE)
    for bad in ("plain", "Maps"):
        with pytest.raises(UserError, match=rf"^teacher.trained: mine.model = '{nets(bad)}' does not give its pooled "
                                            r"features away.*search.loss\[1\] = 'features' reads them; choose a loss"):
            check_read(config, "teacher", {"teacher.trained: mine": ModelSettings(model=nets(bad))}, **SHAPE)
    own = load_study("digits", (CHOICE, f"student.model={nets('plain')}", "student.args={}"))
    with pytest.raises(UserError, match=r"^student.model = 'nets_of_features:plain' does not give") as refused:
        check_read(own, "teacher", fine, **SHAPE)
    assert "\n" not in str(refused.value)
    pooling = load_study("digits", (CHOICE, f"student.model={nets('Pooling')}", "student.args={}"))
    check_read(pooling, "teacher", fine, **SHAPE)


def test_a_teacher_that_is_a_file_of_logits_has_no_features():
    with pytest.raises(UserError, match=r"teacher\.logits is a file of logits, without the features that default"):
        check_read(load_study("digits", ("default.loss=features", CHOICE)), "teacher", {}, **SHAPE)
    check_read(load_study("digits"), "teacher", {}, **SHAPE)


def test_a_head_that_nothing_trains_is_refused():
    config = load_study("digits", ("default.loss=features", "default.alpha=1", CHOICE))
    with pytest.raises(UserError, match=r"default\.alpha = 1 with default\.loss = 'features' would leave"):
        check_read(config, "teacher", {"teacher": config.teacher.model_settings}, **SHAPE)


def test_a_range_of_alpha_that_reaches_1_is_noted_where_a_loss_reads_features(study_of):
    (note,) = study_of(CHOICE).notes
    assert note.startswith("search.alpha reaches 1, where a loss of features leaves the student's head untrained")
    assert study_of(CHOICE, "search.alpha={linear=[0,0.95]}").notes == study_of().notes == []


@pytest.mark.parametrize("loss", ["token-hard", "token-soft"])
def test_the_plan_refuses_a_token_for_a_student_without_one(loss, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    both = ("--set", f"default.loss={loss}", "--set", f"search.loss={{choice=['{loss}','hinton']}}")
    code, _, said = here("plan", "digits", *both)
    assert code == 2 and is_one_line(said)
    assert "student.model = 'vit_tiny_patch16_224' has no distillation token" in said
    assert f"default.loss = '{loss}' trains it; choose a loss" in said
    code, _, said = here("plan", "digits", *both, *with_set(DEIT))
    assert code == 0, said


# ---------------------------------------------------------------------------------------------------------------------
# Folders and bytes


def folders(study):
    return {name: study.stages[name].folder.path.name for name in ("baseline", "teacher_logits", "distill")}


def test_studies_without_such_losses_have_the_folders_that_they_always_had(study_of):
    usual = {"baseline": "baseline-9e20e1b00a", "teacher_logits": "teacher_logits-1c35063bce",
             "distill": "distill-818f9830f6"}
    assert folders(study_of()) == usual
    assert folders(study_of("search.loss={choice=['hinton','dkd']}")) == usual | {"distill": "distill-2280680739"}


def test_only_losses_that_read_features_change_the_teachers_logits(study_of):
    usual, tokens, features = (folders(study_of(*settings)) for settings in (
        (), ("search.loss={choice=['hinton','token-hard']}",), (CHOICE,)))
    assert usual["teacher_logits"] == tokens["teacher_logits"] != features["teacher_logits"]
    assert usual["baseline"] == tokens["baseline"] == features["baseline"]


def test_the_bytes_of_features_count(study_of):
    usual, both = (study_of(*settings).stages["teacher_logits"] for settings in ((), (CHOICE,)))
    assert (usual.feature_width, both.feature_width) == (0, 64)
    assert usual.features_bytes == 0 and both.features_bytes == 6.4 * both.logits_bytes
    rooms = [room_needed(study_of(*settings), Share(1, 0, 1)).parts for settings in ((), (CHOICE,))]
    logits, with_features = (next(size for name, size in room.items() if name.startswith("the teacher's logits"))
                             for room in rooms)
    assert with_features == pytest.approx(7.4 * logits)


def test_features_that_do_not_fit_leave_the_logits_stored(study_of):
    whole = study_of(CHOICE)
    stage = whole.stages["teacher_logits"]
    small = study_of(CHOICE, f"views.cache_gib={(stage.logits_bytes + stage.features_bytes / 2) / 2**30}")
    stages = stage, small.stages["teacher_logits"]
    assert stages[1].fits and not stages[1].features_fit
    assert [stage.task().wants_features for stage in stages] == [True, False]
    assert len(stages[1].runs()) == len(stages[0].runs()) > 1
    assert folders(whole) == folders(small)


# ---------------------------------------------------------------------------------------------------------------------
# Whole studies


def check_export(folder):
    """Load the exported folder with plain timm, and compare its logits with those recorded for the test images."""
    net = timm.create_model(f"local-dir:{folder / 'export'}", pretrained=True).eval()
    with safe_open(folder / "export" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(net.state_dict())
    config, study = net.pretrained_cfg, StudyFiles(folder)
    row = next(row for row in study.confirmation["rows"]
               if (row["arm"], row["configuration"]) == ("distilled", "tuned"))
    recorded = pd.read_parquet(study.stage(row["stage"]) / "runs" / f"{row['runs'][0]:03d}" / "test.parquet")
    images = data.load(load_study(str(folder / "study.toml")).data).test.images
    with torch.no_grad():
        logits = net((torch.from_numpy(images).float() / 255 - config["mean"][0]) / config["std"][0])
    np.testing.assert_allclose(logits.numpy(), np.stack(recorded["logits"]), rtol=5e-3, atol=5e-3)


@pytest.mark.slow
def test_a_study_that_chooses_between_logits_and_features(tmp_path):
    words = ["run", "digits", "--smoke", *with_set((CHOICE, *SHORT, "data.unlabelled=1")), "--dir", tmp_path / "s"]
    printed = kdstudy(*words, cwd=tmp_path).stdout
    assert "64 features of each" in " ".join(printed.split())
    (stage,) = (tmp_path / "s").glob("teacher_logits-*")
    for kind, other in (("views", "features"), ("unlabelled", "unlabelled-features")):
        for file in stage.glob(f"{kind}-[0-9]*.npy"):
            logits, features = np.load(file), np.load(stage / file.name.replace(kind, other, 1))
            assert features.shape == (*logits.shape[:2], 64) and features.dtype == np.float16
    (record,) = (tmp_path / "s").glob("distill-*/record.jsonl")
    assert '"loss": "features"' in record.read_text() and '"loss": "hinton"' in record.read_text()
    assert not list((tmp_path / "s").rglob("projection.safetensors"))
    check_export(tmp_path / "s")
    assert {row["loss"] for row in results_of(tmp_path / "s")["rows"] if row["arm"] == "distilled"} <= {
        "hinton", "features"}


@pytest.mark.slow
def test_a_study_with_a_distillation_token(tmp_path):
    words = ["run", "digits", "--smoke", *with_set((
        "default.loss=token-hard", "search.loss={choice=['token-hard','token-soft']}", *DEIT, *SHORT)), "--dir",
        tmp_path / "s"]
    kdstudy(*words, cwd=tmp_path)
    check_export(tmp_path / "s")
    config = json.loads((tmp_path / "s" / "export" / "config.json").read_text())
    assert config["architecture"] == "deit_tiny_distilled_patch16_224"
    with safe_open(tmp_path / "s" / "export" / "model.safetensors", "np") as file:
        heads = [file.get_tensor(f"{name}.weight") for name in ("head", "head_dist")]
    assert not np.array_equal(*heads)
