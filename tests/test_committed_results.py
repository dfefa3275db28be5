"""The studies whose results are kept with the code: the README's tables are what their files say."""

import json
import os
import shutil
from pathlib import Path

import pytest
from synthetic import here

from kdstudy.config.load import load_study
from kdstudy.store.storage import Storage
from kdstudy.study import Study

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "study" / "presets" / "results"
READMES = ("README.md", "analysis/README.md")  # which hold blocks that the command writes
IMAGES = os.environ.get("KDSTUDY_CIFAR100")
WEIGHTS = os.environ.get("KDSTUDY_PRETRAINED")  # a folder of the weights files that the studies name
STUDIES = sorted(path.parent.name for path in RESULTS.glob("*/study.toml"))


# Not what is fitted, sensitivity.json: another processor may round its last digits in another way.
RESULT_FILES = ("results.json", "results.md", "trials.csv", "curves.csv", "classes.csv")


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory):
    """Copies of the committed studies and of the README, reported anew."""
    home = tmp_path_factory.mktemp("committed")
    shutil.copytree(RESULTS, home / "results", ignore=shutil.ignore_patterns("report.html", "export"))
    (home / "analysis").mkdir()
    for readme in READMES:
        shutil.copyfile(ROOT / readme, home / readme)
    for name in STUDIES:
        for file in RESULT_FILES:
            (home / "results" / name / "results" / file).unlink()
    readmes = [word for readme in READMES for word in ("--readme", home / readme)]
    code, _, err = here("report", *(str(home / "results" / name) for name in STUDIES), *map(str, readmes))
    assert code == 0, err
    return home


def test_the_readmes_tables_regenerate_byte_for_byte(rebuilt):
    for readme in READMES:
        assert (rebuilt / readme).read_bytes() == (ROOT / readme).read_bytes()
        assert "<!-- kdstudy results: " in (ROOT / readme).read_text()


@pytest.mark.parametrize("name", STUDIES)
def test_committed_results_regenerate_byte_for_byte(rebuilt, name):
    for file in RESULT_FILES:
        again, committed = (where / name / "results" / file for where in (rebuilt / "results", RESULTS))
        assert again.read_bytes() == committed.read_bytes()
    assert json.loads((RESULTS / name / "results" / "results.json").read_text())["gain"] is not None


# As version a032bed of this project named them. A study that was begun with it goes on with this one.
NAMED = {"digits": {"teacher": "9de217b6d6", "baseline": "9e20e1b00a", "finalists_baseline": "ff898b7d35",
                    "confirm_baseline": "5ebdd01c70"},
         "digits-full": {"teacher": "9de217b6d6", "baseline": "5125dcbfeb", "finalists_baseline": "d5deee394e",
                         "confirm_baseline": "2f33038cd4"}}


@pytest.mark.parametrize("name", NAMED)
def test_the_folders_of_stages_are_named_as_they_were(name, tmp_path):
    study = Study(load_study(name), Storage(tmp_path))
    assert {stage: study.context.stage(stage).folder.path.name.split("-")[1] for stage in NAMED[name]} == NAMED[name]


@pytest.mark.skipif(not IMAGES, reason="KDSTUDY_CIFAR100 does not say where the images are")
@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[] if name == "cifar100-small" else [pytest.mark.slow]) for name in STUDIES])
def test_a_study_of_an_earlier_version_has_nothing_left_to_do(name, monkeypatch):
    """The committed studies were run by earlier versions: every stage is found, and is current."""
    folder = RESULTS / name
    if load_study(str(folder)).teacher.pretrained:
        if not WEIGHTS:
            pytest.skip("KDSTUDY_PRETRAINED does not say where the weights files are")
        monkeypatch.chdir(WEIGHTS)
    study = Study(load_study(str(folder), (f"data.source={IMAGES}",)), Storage(folder))
    stages = json.loads((folder / "stages.json").read_text())["stages"]
    assert {name: stage.folder.path.name for name, stage in study.stages.items()} == stages
    # The weights of the larger students are not kept, and would be trained again.
    has_weights = any(folder.glob("confirm-*/runs/*/model.safetensors"))
    lacking = set() if has_weights else {"teacher_logits", "confirm"}
    assert {name for name, stage in study.stages.items() if not stage.is_current()} == lacking


def test_what_is_committed_is_small_and_names_no_machine():
    files = [path for path in RESULTS.rglob("*") if path.is_file() and not {"export", "images"} & set(path.parts)
             and path.name not in ("report.html", "sensitivity.json")]
    assert sum(path.stat().st_size for path in files) < 14 * 2**20
    for path in files:
        if path.suffix in (".json", ".jsonl", ".toml", ".md", ".csv"):
            text = path.read_text()
            assert '"host"' not in text and '"pid"' not in text and "/tmp" not in text and "/home" not in text
