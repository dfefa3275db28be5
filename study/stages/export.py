"""Export the winner as a model folder for timm: safetensors, config.json and a model card."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from timm.models import save_for_hf

from kdstudy.analysis.number_text import counted, show_interval, significant
from kdstudy.analysis.outcome import results
from kdstudy.analysis.study_files import EXPORT_KEY_FILE, StudyFiles, find_row
from kdstudy.analysis.tables import OTHERS, plain
from kdstudy.config.settings import StudyConfig
from kdstudy.errors import StudyFailedError, UserError
from kdstudy.stages.teacher import check_function
from kdstudy.store import files
from kdstudy.store.fingerprints import changed
from kdstudy.trainables import data, models
from kdstudy.trainables.device import default_device, to_device
from kdstudy.trainables.evaluator import Evaluator
from kdstudy.trainables.models import Classifier
from kdstudy.trainables.paths import remove
from kdstudy.trainables.settings import ModelSettings, TrainSettings

CHOSEN = "distilled tuned"  # the row that the study exports


def export_student(config: StudyConfig, folder: Path, target: Path, name: str = CHOSEN) -> float:
    """Write a confirmed student to `target`: its last epoch on the first confirmation seed with which it did not
    diverge.

    name: its arm and configuration, as in the results table; by default the distilled student that the study chose.
    Loads the folder again with timm and checks that it repeats the recorded test predictions. Returns the test
    accuracy, 0 to 1. Raises UserError if the confirmation is not done or has no such row or no weights of it,
    StudyFailedError if the predictions differ.
    """
    study = StudyFiles(folder)
    if study.confirmation is None:
        raise UserError(f"{folder} has no confirmed student yet; run `kdstudy run {folder}` first")
    names = {f"{row['arm']} {row['configuration']}": row for row in study.confirmation["rows"]}
    if name not in names:
        raise UserError(f"--row {name!r} is not a row of {folder}; its rows are {', '.join(map(repr, names))}")
    confirmed = names[name]
    key = confirmed["arm"], confirmed["configuration"]
    index = study.exported_index(*key)
    if index is None:
        raise UserError(f"{folder} has no student to export as {name!r}: it diverged on every confirmation seed")
    number = confirmed["runs"][index]
    weights = study.stage(confirmed["stage"]) / "runs" / f"{number:03d}" / "model.safetensors"
    if not weights.exists():
        raise UserError(f"{folder} has no weights of {name!r}; it was packed without them")
    outcome = results(study)
    row = find_row(outcome, *key)
    is_chosen = study.export_key(*key) == study.export_key()  # rows may share their runs
    card = _student_card(config, outcome, row, study.done(confirmed["stage"])["seeds"][index], is_chosen)
    predictions = study.predictions(number, confirmed["stage"])
    return _export(config, config.student, weights, target, card, predictions, study.export_key(*key))


def export_teacher(config: StudyConfig, folder: Path, target: Path) -> float:
    """Write the teacher in the same way. Raises UserError if it is not tested yet or is not a single model."""
    study = StudyFiles(folder)
    predictions, done = study.teacher_predictions(), study.done("teacher")
    if predictions is None or done is None:
        raise UserError(f"{folder} has no tested teacher yet; run `kdstudy run {folder} --until teacher_logits` first")
    if len(done["members"]) != 1:
        what = "a file of logits" if not done["members"] else f"{len(done['members'])} models"
        raise UserError(f"the teacher of {folder} is {what}, not one model; there is nothing to export")
    (member,) = done["members"]
    weights = study.stage("teacher") / member["weights"]
    check_function(member["model"]["model"], config)
    settings = ModelSettings.model_validate(member["model"] | {"pretrained": config.teacher.pretrained})
    card = [f"# {plain(done['model'])}, teacher of the study {config.name}", "", *_about(config)]
    if not config.teacher.is_given:
        recipe = _recipe(config.teacher.train_settings, done["parameters"]) | {"lr": done["parameters"]["lr"]}
        card += [f"Training: {_show(recipe)}.", ""]
    return _export(config, settings, weights, target, card, predictions, {"teacher": study.stage("teacher").name},
                   normalised=member["normalised"])


def _check_images(config: StudyConfig, splits: data.Splits, predictions: pd.DataFrame) -> None:
    """See whether these are the images that the study was tested on. Raises UserError."""
    labels = predictions["label"].to_numpy()
    if not np.array_equal(labels, splits.test.labels):
        raise UserError(f"data.source = {config.data.source!r} does not hold the images that the study was tested on: "
                        f"{len(splits.test)} test images of {len(splits.class_names)} classes, not {len(labels)} of "
                        f"{len(np.unique(labels))}; say where those images are with --set data.source=PATH")


def _export(config: StudyConfig, settings: ModelSettings, weights: Path, target: Path, card: list[str],
            predictions: pd.DataFrame, key: dict[str, Any], normalised: list | None = None) -> float:
    if target.exists() and any(target.iterdir()) and not (target / EXPORT_KEY_FILE).exists():
        raise UserError(f"{target} is neither empty nor a kdstudy export; choose another folder")
    try:
        splits = data.load(config.data)
    except ValueError as error:
        raise UserError(str(error)) from None
    _check_images(config, splits, predictions)
    if not normalised:
        settings = models.with_measured(settings, splits.student_train)
    correct = (predictions["label"] == predictions["prediction"]).to_numpy()
    image_size = config.data.image_size or splits.image_size
    shape = {"classes": len(splits.class_names), "channels": splits.channels, "image_size": image_size}
    models.check(settings, **shape)
    if normalised:
        models.check_normalisation(*normalised, splits.channels)
    model = models.build(settings, **shape, normalised=tuple(map(tuple, normalised)) if normalised else None)
    models.load_weights(model, weights)
    with _draft_of(target) as draft:
        if models.is_function(settings.model):
            _write_plain_folder(model, settings, splits, draft)
        else:
            _write_timm_folder(model, splits, draft, bool(settings.pretrained))
        measured = [f"Test accuracy of these very weights: {100 * correct.mean():.2f} % on {len(correct)} images.", "",
                    f"It takes images of {model.size}x{model.size} pixels in 0..1, normalised with "
                    f"{models.show_normalisation(model.mean, model.std)}.", ""]
        (draft / "README.md").write_text("\n".join([*card, *measured, *_usage(target, settings)]), encoding="utf-8")
        again = _predict_from(draft, splits, settings) == splits.test.labels
        # On the device that trained it every prediction is the same; elsewhere, rounding may change ties.
        if (again != correct).sum() > max(1, 0.002 * len(correct)):
            raise StudyFailedError("the exported model does not reproduce its recorded test predictions: "
                                   f"{100 * again.mean():.2f} % right instead of {100 * correct.mean():.2f} %; are the "
                                   f"images of data.source = {config.data.source!r} the same?")
        files.write_json(draft / EXPORT_KEY_FILE, key)
        for file in draft.iterdir():
            file.chmod(0o644)  # safetensors makes files private, but an export is meant to be shared
    return float(again.mean())


@contextlib.contextmanager
def _draft_of(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces the target if there is no error."""
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    remove(draft, draft.parent)
    try:
        yield draft
        remove(target, target.parent)
        draft.rename(target)
    finally:
        remove(draft, draft.parent, if_possible=True)


def _write_timm_folder(model: Classifier, splits: data.Splits, folder: Path, pretrained: bool) -> None:
    save_for_hf(
        model.net, str(folder), safe_serialization=True,
        model_config={"label_names": list(splits.class_names)},
        data_config={"input_size": (splits.channels, model.size, model.size), "mean": model.mean, "std": model.std,
                     "interpolation": "bicubic", "crop_pct": 1.0},
    )
    if not pretrained:
        # timm copies the origin and licence of its own pretrained weights, which do not apply here.
        config = json.loads((folder / "config.json").read_text())
        for name in ("tag", "license", "origin_url", "paper_ids", "paper_name", "notes", "description"):
            config["pretrained_cfg"].pop(name, None)
        files.write_json(folder / "config.json", config)


def _write_plain_folder(model: Classifier, settings: ModelSettings, splits: data.Splits, folder: Path) -> None:
    """Write the same files for a model unknown to timm. kdstudy can read them back as `teacher.trained`."""
    folder.mkdir(parents=True)
    models.save_weights(model, folder / "model.safetensors")
    classes = len(splits.class_names)
    files.write_json(folder / "config.json", {
        "architecture": settings.model, "model_args": settings.args, "num_classes": classes,
        "label_names": list(splits.class_names),
        "pretrained_cfg": {"input_size": [splits.channels, model.size, model.size], "mean": list(model.mean),
                           "std": list(model.std), "num_classes": classes},
    })


@torch.no_grad()
def _predict_from(folder: Path, splits: data.Splits, settings: ModelSettings) -> np.ndarray:
    """Return the test predictions (class indices) of the exported model, loaded by timm if possible, using nothing but
    the folder."""
    trained = models.read_trained(folder, settings.model)
    if models.is_function(trained.model.model):
        model = models.build(trained.model, classes=trained.classes, channels=splits.channels,
                             image_size=trained.model.image_size, weights=trained.weights,
                             normalised=(trained.mean, trained.std))
    else:
        net = timm.create_model(f"local-dir:{folder}", pretrained=True)
        config = net.pretrained_cfg
        model = Classifier(net, config["mean"], config["std"], config["input_size"][-1])
    tensors = to_device(splits.test, default_device())
    return Evaluator(*tensors, model.size).logits(model.to(default_device())).argmax(1).cpu().numpy()


def _student_card(config: StudyConfig, outcome: dict[str, Any], row: dict[str, Any], seed: int,
                  is_chosen: bool) -> list[str]:
    name, distilled = f"{row['arm']} {row['configuration']}", row["arm"] == "distilled"
    names = ("temperature", "alpha", "lr", *row.get("of_loss", ()))
    loss = [f"loss {plain(row['loss'])}"] if row.get("loss") else []
    shown = ", ".join(loss + [f"{setting} {row[setting]:.4g}" for setting in names if setting in row])
    recipe = _recipe(config.train, row)
    mean = f"{row['test_mean']:.2f} %" + (f" ± {row['test_sd']:.2f}" if row["test_sd"] is not None else "")
    sizes = outcome["data"]
    what = "distilled" if distilled else "trained on labels alone"
    by_teacher = f", {sizes['train']} by the teacher" if distilled else ""
    teacher = [f"| teacher | {plain(config.teacher.title)} |"] if distilled else []
    other = [] if is_chosen else [f"This is the row “{name}” of that study, not the student that it chose.", ""]
    return [
        f"# {plain(config.student.model)}, {what} by the study {config.name}", "", *_about(config),
        "| | |", "|---|---|",
        f"| data | {plain(config.data.source)}: {sizes['student_train']} training images seen by the student"
        f"{by_teacher}; {sizes['test']} test images |",
        *teacher,
        f"| hyperparameters | {shown} |",
        f"| training | {_show(recipe)} |",
        f"| parameters | {row['parameters']:,} |",
        f"| test accuracy over {counted(row['seeds'], 'seed')} | {mean} |",
        f"| gain | {_gain_in_card(outcome, row)} |", "",
        *other, outcome["verdict"], "", plain(outcome["scope"]), "",
        f"These are the {'averaged weights (EMA)' if recipe.get('ema') else 'weights'} of the confirmation run with "
        f"seed {seed}, after its last epoch.", "",
    ]


def _about(config: StudyConfig) -> list[str]:
    return [plain(config.about), ""] if config.about.strip() else []


def _recipe(training: TrainSettings, row: dict[str, Any]) -> dict[str, Any]:
    """The training settings that are not the defaults, with the values that a row of the results table has."""
    given = {"epochs": training.epochs} | changed(training)
    return given | {name: row[name] for name in OTHERS if row.get(name) is not None}


def _show(recipe: dict[str, Any]) -> str:
    shown = {name: significant(value, 4) if isinstance(value, float) else value for name, value in recipe.items()}
    return plain(", ".join(f"{name} {value}" for name, value in shown.items()))


def _gain_in_card(outcome: dict[str, Any], row: dict[str, Any]) -> str:
    if outcome["smoke"]:
        return "none is measured by a trial run"
    if row["gain"] is not None:
        return f"{show_interval(row['gain'])} over the tuned baseline"
    return "no interval: one seed" if row["seeds"] < 2 else "none: gains are measured against this very model"


def _usage(target: Path, settings: ModelSettings) -> list[str]:
    if models.is_function(settings.model):
        module, _, function = settings.model.partition(":")
        lines = [f"from {module} import {function}", "from safetensors.torch import load_file",
                 "# config.json has image size, mean and std",
                 f"model = {function}(num_classes=…, in_chans=…, **{settings.args})",
                 f"model.load_state_dict(load_file({json.dumps(f'{target.name}/model.safetensors')}))"]
    else:
        lines = ["import timm",
                 "# local-dir: followed by the path of this folder",
                 f"model = timm.create_model({json.dumps(f'local-dir:{target.name}')}, pretrained=True).eval()",
                 "config = timm.data.resolve_model_data_config(model)  # image size, mean and std"]
    return ["```python", *lines, "```", "",
            f"Licence and provenance: trained by kdstudy; `{EXPORT_KEY_FILE}` names the study's stage it came from.",
            ""]
