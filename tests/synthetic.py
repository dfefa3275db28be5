"""The command in this process, and a finished study for it that was never trained."""

import contextlib
import io
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings

from kdstudy.cli.main import main
from kdstudy.config.load import load_study
from kdstudy.search.runs import search_view_seed
from kdstudy.store.files import write_json
from kdstudy.store.fingerprints import hash_file
from kdstudy.store.record import TrialState
from kdstudy.store.storage import Storage
from kdstudy.study import Study
from kdstudy.trainables import models
from kdstudy.trainables.predictions import write_predictions

LONGEST_SECONDS = 120  # what nothing here takes, however many processes share the machine
EXAMPLES = 30
MANY_EXAMPLES = int(os.environ.get("KDSTUDY_EXAMPLES", "300"))  # of each fuzzer that runs with --slow


def here(*words: str) -> tuple[int, str, str]:
    """The command in this process: its exit code and what it printed. A traceback is an error of the test."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    earlier = sys.argv, signal.signal(signal.SIGALRM, _too_long)
    sys.argv = ["kdstudy", *words]
    signal.alarm(LONGEST_SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        signal.alarm(0)
        sys.argv, handler = earlier
        signal.signal(signal.SIGALRM, handler)
    return code, out.getvalue(), err.getvalue()


def _too_long(number, frame):
    pytest.fail(f"the command took more than {LONGEST_SECONDS} seconds")


def is_one_line(text: str) -> bool:
    return text.startswith("kdstudy: ") and text.endswith("\n") and len(text.splitlines()) == 1 and len(text) > 20


def examples(count: int):
    """So many, each as long as it takes; the few of every run are always the same ones."""
    return settings(max_examples=count, deadline=None, derandomize=count == EXAMPLES, database=None,
                    suppress_health_check=list(HealthCheck), phases=(Phase.explicit, Phase.generate))


# What can be done with a study; STUDY is its folder where that is not the first operand, OUT a place to write to.
COMMANDS = [("status",), ("report",), ("plan",), ("pack", "OUT"), ("export", "OUT"),
            ("export", "OUT", "--model", "teacher"), ("logits", "OUT/l.safetensors"), ("train", "baseline"),
            ("train", "distill"), ("plan", "digits", "--set", "search.warm_start=STUDY")]


def on_study(words: tuple[str, ...], folder: Path, out: Path) -> tuple[int, str, str]:
    """A command on a study's folder, which is STUDY in `words` if it is not the first operand; OUT is `out`."""
    command, *rest = (word.replace("OUT", str(out)).replace("STUDY", str(folder)) for word in words)
    if command == "train":
        return here(command, *rest, str(folder), "--set", "train.epochs=1")
    return here(command, *rest) if "digits" in rest else here(command, str(folder), *rest)


# -- a study, made by hand --------------------------------------------------------------------------------------------

SHORT = ("search.trials=3", "search.baseline_trials=3", "search.protected=1", "search.baseline_protected=1",
         "train.epochs=4", "teacher.epochs=2", "confirm.seeds=2")


def write_finished(folder: Path, *settings: str) -> Path:
    """A study with every stage done in no time: models that were never trained, and records that were made up."""
    config = load_study("digits", (*SHORT, *settings), smoke=True)
    study = Study(config, Storage(folder))
    folder.mkdir(parents=True)
    (folder / "study.toml").write_text(config.to_toml())
    made = [_write_teacher(study), *(_write_search(study, arm) for arm in ("baseline", "distill")),
            _write_logits(study), *(_write_confirmation(study, name) for name in ("confirm_baseline", "confirm"))]
    splits = study.context.splits
    data = {name: len(getattr(splits, name)) for name in ("train", "student_train", "validation", "test")}
    write_json(folder / "stages.json", {
        "name": config.name, "epochs": config.train.epochs, "rungs": config.rungs, "machine": "a desk",
        "stages": {path.name.rsplit("-", 1)[0]: path.name for path in made},
        "data": {**data, "unlabelled": 0, "classes": list(splits.class_names), "channels": splits.channels,
                 "image_size": study.context.image_size, "duplicates": splits.duplicates, "dropped": 0}})
    return folder


def _model(study, section):
    return models.build(study.context.model(section).model_copy(update={"pretrained": False}), **study.context.shape)


def _record(stage, runs, epochs, *origins) -> None:
    record = stage.record()
    for number, (parameters, label) in enumerate(runs):
        origin = origins[min(number, len(origins) - 1)]
        record.add_trial(TrialState(number, parameters, number, search_view_seed(0), origin, True, label))
        for epoch in range(2, epochs + 1, 2):
            accuracy = 0.2 + 0.1 * number + 0.05 * epoch
            metrics = {"validation_accuracy": accuracy, "validation_loss": 2.0, "seconds": 1.0}
            record.report(number, epoch, "complete" if epoch == epochs else "continue", metrics)


def _write_teacher(study) -> Path:
    stage = study.stages["teacher"].folder
    _record(stage, [({"lr": 3e-3}, "")], study.config.teacher.epochs, "teacher")
    model = _model(study, "teacher")
    models.save_weights(model, stage.path / "model.safetensors")
    settings = study.config.teacher.model_settings.model_dump()
    stage.finish({
        "model": study.config.teacher.title, "kind": "CNN", "family": "ResNet", "outcome": "made up", "seconds": 1.0,
        "members": [{"model": settings, "weights": "model.safetensors", "normalised": None}], "trial": 0,
        "parameters": {"lr": 3e-3}, "model_parameters": model.parameter_count, "best_validation": 0.3, "trials": 1,
        "weights": hash_file(stage.path / "model.safetensors")})
    return stage.path


POINTS = [{"temperature": 4.0, "alpha": 0.5, "lr": 1e-3}, {"temperature": 2.0, "alpha": 0.9, "lr": 2e-3},
          {"temperature": 8.0, "alpha": 0.1, "lr": 5e-4}]


def _of_arm(arm: str, point: dict) -> dict:
    return {name: value for name, value in point.items() if arm == "distill" or name == "lr"}


def _write_search(study, arm: str) -> Path:
    stage, epochs = study.stages[arm].folder, study.config.train.epochs
    _record(stage, [(_of_arm(arm, point), "") for point in POINTS], epochs, "default", "sobol")
    stage.finish({"kind": "Transformer", "family": "VisionTransformer", "outcome": "made up", "seconds": 1.0,
                  "trials": 3, "complete": 3, "stopped": 0, "failed": 0, "winner": 2, "ranking": [2, 1, 0],
                  "parameters": _of_arm(arm, POINTS[2]), "best_validation": round(0.4 + 0.05 * epochs, 9),
                  "default_validation": round(0.2 + 0.05 * epochs, 9),
                  "only_shared": None})
    return stage.path


def _write_logits(study) -> Path:
    stage, splits = study.stages["teacher_logits"].folder, study.context.splits
    stage.path.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for seed in study.context.view_seeds:
        shape = (study.config.view_count, len(splits.student_train), 10)
        np.save(stage.path / f"views-{seed}.npy", generator.normal(size=shape).astype(np.float16))
    np.save(stage.path / "validation.npy", generator.integers(0, 10, len(splits.validation)))
    write_predictions(_model(study, "teacher"), splits.test, stage.path / "test.parquet")
    stage.finish({"outcome": "made up", "seconds": 1.0, "cached": True, "view_seeds": study.context.view_seeds})
    return stage.path


def _write_confirmation(study, name: str) -> Path:
    stage, arm = study.stages[name].folder, "baseline" if name == "confirm_baseline" else "distill"
    row_arm = "baseline" if arm == "baseline" else "distilled"
    rows = [{"arm": row_arm, "configuration": configuration, "parameters": _of_arm(arm, POINTS[trial]), "trial": trial,
             "runs": [index, index + 2]} for index, (configuration, trial) in enumerate([("default", 0), ("tuned", 2)])]
    _record(stage, [(rows[run % 2]["parameters"], rows[run % 2]["configuration"]) for run in range(4)],
            study.config.train.epochs, "confirm")
    for run in range(4):
        model, folder = _model(study, "student"), stage.path / "runs" / f"{run:03d}"
        folder.mkdir(parents=True)
        models.save_weights(model, folder / "model.safetensors")
        write_predictions(model, study.context.splits.test, folder / "test.parquet")
    stage.finish({"outcome": "made up", "seconds": 1.0, "runs": 4, "seeds": [1, 2], "rows": rows,
                  "model_parameters": model.parameter_count})
    return stage.path
