"""Studies whose teacher is not trained by them: folders, several of them, a file of logits."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tomli_w
from running import ONE_AT_A_TIME, SMOKE_EPOCHS, kdstudy, results_of
from synthetic import here, is_one_line

from kdstudy.config.load import load_study
from kdstudy.store.record import Record


def study_with(tmp_path, **teacher):
    """The smoke study as a file, with another teacher."""
    values = load_study(ONE_AT_A_TIME[0], (f"train.epochs={SMOKE_EPOCHS}",), smoke=True).to_values()
    values["teacher"] = teacher
    values["resources"]["concurrent"] = 1
    (tmp_path / "given.toml").write_text(tomli_w.dumps(values))
    return tmp_path / "given.toml"


@pytest.fixture(scope="module")
def teacher_folder(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "teacher"
    assert here("export", str(finished[0]), str(folder), "--model", "teacher")[0] == 0
    return folder


def stage(folder, name):
    return next(path for path in folder.glob(f"{name}-*") if path.name.rsplit("-", 1)[0] == name)


SHORT = ("--until", "teacher_logits", "--set", "search.baseline_trials=4", "--set", "train.epochs=4")


@pytest.mark.slow
def test_an_exported_teacher_answers_as_it_did_where_it_was_trained(finished, teacher_folder, tmp_path):
    folder = tmp_path / "study"
    study = study_with(tmp_path, trained=str(teacher_folder))
    assert "given" in kdstudy("run", study, "--dir", folder, *SHORT, cwd=tmp_path).stdout
    trained, given = (json.loads((stage(where, "teacher") / "done.json").read_text())
                      for where in (finished[0], folder))
    assert given["best_validation"] == trained["best_validation"] and given["family"] == "ResNet"
    assert given["model_parameters"] == trained["model_parameters"] and given["trials"] == 0
    answers = [pd.read_parquet(stage(where, "teacher_logits") / "test.parquet") for where in (finished[0], folder)]
    np.testing.assert_allclose(np.stack(answers[0]["logits"]), np.stack(answers[1]["logits"]), atol=0.02, rtol=0.02)
    views = [sorted(stage(where, "teacher_logits").glob("views-*.npy")) for where in (finished[0], folder)]
    assert [path.name for path in views[0]] == [path.name for path in views[1]]
    # Fewer epochs have fewer views; those they share are the same.
    for one, two in zip(*views, strict=True):
        np.testing.assert_allclose(np.load(one)[:4], np.load(two), atol=0.02, rtol=0.02)


@pytest.mark.slow
def test_a_file_of_logits_stands_for_the_teacher_it_came_from(finished, tmp_path):
    kdstudy("logits", finished[0], tmp_path / "teacher.safetensors", cwd=tmp_path)
    folder = finished[0].parent / "from-logits"  # beside it: the baseline is taken over
    study = study_with(tmp_path, logits=str(tmp_path / "teacher.safetensors"))
    printed = kdstudy("run", study, "--dir", folder, cwd=tmp_path).stdout
    assert "taken from digits-smoke" in printed and "Traceback" not in printed
    searches = [Record(stage(where, "distill") / "record.jsonl", write=False) for where in (finished[0], folder)]
    curves = [[(trial.parameters, [report["metrics"]["validation_accuracy"] for report in trial.reports])
               for trial in search.trials.values()] for search in searches]
    assert curves[0] == curves[1] and len(curves[0]) == 6
    first, second = results_of(finished[0]), results_of(folder)
    assert first["gain"] == second["gain"] and first["rows"][1:] != []
    accuracies = [[row["test_mean"] for row in results["rows"]] for results in (first, second)]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.3)  # the teacher's own: from fp16
    assert second["transfer"] == "given logits → Transformer" and second["rows"][0]["parameters"] is None
    refused = kdstudy("export", folder, tmp_path / "t", "--model", "teacher", cwd=tmp_path, check=False)
    assert refused.returncode == 2 and "is a file of logits, not one model" in refused.stderr


@pytest.mark.slow
def test_several_teachers_answer_with_their_mean(finished, teacher_folder, tmp_path):
    import shutil

    from safetensors.numpy import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(teacher_folder, other)
    weights = load_file(other / "model.safetensors")
    weights["fc.bias"] = weights["fc.bias"] + np.arange(10, dtype=np.float32)
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    folder = tmp_path / "study"
    kdstudy("run", study_with(tmp_path, trained=[str(teacher_folder), str(other)]), "--dir", folder, *SHORT,
            "--set", "confirm.seeds=1", cwd=tmp_path)
    done = json.loads((stage(folder, "teacher") / "done.json").read_text())
    assert len(done["members"]) == 2 and "mean logits of 2 models" in done["outcome"]
    both, one = (np.stack(pd.read_parquet(stage(where, "teacher_logits") / "test.parquet")["logits"]).astype(float)
                 for where in (folder, finished[0]))
    np.testing.assert_allclose(both - one, np.tile(np.arange(10) / 2, (len(one), 1)), atol=0.03)


@pytest.mark.parametrize(("teacher", "said"), [
    ({"trained": "nowhere"}, "teacher.trained: nowhere: the folder does not exist"),
    ({"logits": "nowhere"}, "teacher.logits = 'nowhere': the file does not exist"),
    ({"logits": "given.toml"}, "teacher.logits = 'given.toml': it is not a safetensors file"),
    ({"trained": "."}, "holds no config.json"),
    ({"model": "resnet18", "trained": "."}, "--set teacher.model= removes the study's own model"),
])
def test_a_given_teacher_that_is_not_there_is_one_line(teacher, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = here("run", str(study_with(tmp_path, **teacher)))
    assert code == 2 and said in err and is_one_line(err), err


@pytest.mark.slow
def test_logits_and_teachers_of_other_data_are_refused(finished, teacher_folder, tmp_path):
    kdstudy("logits", finished[0], tmp_path / "l.safetensors", cwd=tmp_path)
    for given, setting, said in (
        ({"logits": str(tmp_path / "l.safetensors")}, "data.split_seed=1",
         "its student train images are not this study's"),
        ({"logits": str(tmp_path / "l.safetensors")}, "views.shift=2",
         "not this study's; use the same settings in [views]"),
        ({"logits": str(tmp_path / "l.safetensors")}, "confirm.seeds=4", "it has no logits for view seed"),
        ({"trained": str(teacher_folder)}, "data.classes=5", "has 10 classes, but the data have 5"),
    ):
        refused = kdstudy("run", study_with(tmp_path, **given), "--set", setting, "--dir", tmp_path / "s", cwd=tmp_path,
                          check=False)
        assert refused.returncode == 2 and said in refused.stderr, refused.stderr
        assert refused.stderr.count("\n") == 1


def test_nothing_but_a_logits_file_is_ever_replaced(finished, tmp_path):
    notes = tmp_path / "notes.safetensors"
    notes.write_text("my notes")
    for out, said in ((notes, "was not written by `kdstudy logits`"), (tmp_path / "l.npz", "name it l.safetensors")):
        code, _, err = here("logits", str(finished[0]), str(out))
        assert code == 2 and said in err and is_one_line(err), err
    assert notes.read_text() == "my notes"


def test_an_export_with_other_images_is_refused(finished, tmp_path):
    code, _, err = here("export", str(finished[0]), str(tmp_path / "out"), "--set", "data.classes=5")
    assert code == 2 and "does not hold the images that the study was tested on" in err
    assert is_one_line(err) and not (tmp_path / "out").exists()


def test_an_export_of_an_earlier_confirmation_is_not_announced(finished, tmp_path):
    copy = shutil.copytree(finished[0], tmp_path / "study", ignore=shutil.ignore_patterns("*.npy"))

    def announced() -> bool:
        return any(line.startswith("student ") for line in here("report", str(copy))[1].splitlines())

    assert announced()
    key = copy / "export" / "kdstudy.json"
    key.write_text(json.dumps(json.loads(key.read_text()) | {"confirm": "confirm-0123456789"}))
    assert not announced()


@pytest.mark.slow
def test_a_packed_study_is_small_and_still_reports_and_exports(finished, tmp_path):
    folder, _ = finished
    kdstudy("pack", folder, tmp_path / "packed", cwd=tmp_path)
    packed = tmp_path / "packed"
    (packed / "results" / "report.html").unlink()

    def size(where: Path) -> int:
        return sum(path.stat().st_size for path in where.rglob("*") if path.is_file() and "results" not in path.parts
                   and "export" not in path.parts and "train" not in path.parts and "solo" not in path.parts)

    assert size(packed) < 0.6 * size(folder) and not list(packed.glob("teacher_logits-*/views-*"))
    again = kdstudy("report", packed, cwd=tmp_path).stdout
    assert results_of(packed) == results_of(folder) and results_of(folder)["verdict"] in " ".join(again.split())
    kdstudy("export", packed, tmp_path / "student", cwd=tmp_path)
    kdstudy("export", folder, tmp_path / "original", cwd=tmp_path)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("student", "original")]
    assert weights[0] == weights[1]
    stages = [line for line in kdstudy("run", packed, cwd=tmp_path).stdout.splitlines() if "/8 " in line]
    assert len(stages) == 8 and all(" = " in line for line in stages if "export" not in line.split()[1])
    for record in packed.glob("*/record.jsonl"):
        assert not any({"host", "pid"} & json.loads(line).keys() for line in record.read_text().splitlines())
