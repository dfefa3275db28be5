"""The card of an exported model, README.md in its folder."""

from typing import Any

import pandas as pd

from kdstudy.analysis.deployment import deployment, explanation, table
from kdstudy.analysis.number_text import counted, show_interval, significant
from kdstudy.analysis.study_files import EXPORT_KEY_FILE, StudyFiles
from kdstudy.analysis.tables import OTHERS, plain
from kdstudy.config.sections import TeacherSettings
from kdstudy.config.settings import StudyConfig
from kdstudy.config.teachers import MAIN
from kdstudy.export.formats import FORMAT
from kdstudy.export.formats.base import Deployable
from kdstudy.export.header import base_model, header
from kdstudy.store.fingerprints import changed
from kdstudy.trainables import models
from kdstudy.trainables.settings import TrainSettings

PACKAGES = ("kdstudy", "torch", "timm")


def of_student(config: StudyConfig, outcome: dict[str, Any], row: dict[str, Any], seed: int,
               is_chosen: bool) -> list[str]:
    """The first lines of the card of a confirmed student. row: of the results table. seed: of its run."""
    ema = _recipe(config.train, row).get("ema")
    return _of_row(config, outcome, row, f"These are the {'averaged weights (EMA)' if ema else 'weights'} of the "
                   f"confirmation run with seed {seed}, after its last epoch.", is_chosen)


def of_average(config: StudyConfig, outcome: dict[str, Any], row: dict[str, Any], runs: int, kind: str,
               is_chosen: bool) -> list[str]:
    """The first lines of the card of an average over a row's seeds. kind: `weights` or `logits`."""
    row = row | {"parameters": row["parameters"] * (runs if kind == "logits" else 1)}
    mean = "one model, whose weights are the mean of those" if kind == "weights" else "the mean of the logits"
    return _of_row(config, outcome, row, f"This is {mean} of {runs} confirmation runs that differ in their seed alone. "
                   "The study did not confirm it: the table above is of the single runs.", is_chosen)


def of_trial(config: StudyConfig, outcome: dict[str, Any], trial: dict[str, Any], names: list[str]) -> list[str]:
    """The first lines of the card of a search's trial. trial: a row of trials.csv. names: of the hyperparameters."""
    distilled = trial["stage"] != "baseline"
    shown = ", ".join(f"{name} {significant(trial[name], 4) if isinstance(trial[name], float) else plain(trial[name])}"
                      for name in names if not pd.isna(trial.get(name)))
    ended = (f" It was stopped early, after epoch {trial['epochs']} of {config.train.epochs}, when its learning rate "
             "was not yet at the end of its schedule." if trial["ended"] == "stopped" else "")
    return [
        *_title(config, distilled),
        "| | |", "|---|---|",
        *_data(config, outcome, trial if distilled else None),
        f"| hyperparameters | {shown} |",
        f"| training | {_show(_recipe(config.train, trial))} |",
        f"| validation accuracy | {100 * trial['last_validation_accuracy']:.2f} % after {trial['epochs']} epochs |", "",
        f"This is trial {trial['trial']} of the study's search, trained again, not the student that the study chose "
        f"and confirmed.{ended} Its accuracy is that of one run: the best of several trials looks better than it is.",
        "",
    ]


def _of_row(config: StudyConfig, outcome: dict[str, Any], row: dict[str, Any], origin: str,
            is_chosen: bool) -> list[str]:
    name, distilled = f"{row['arm']} {row['configuration']}", row["arm"] == "distilled"
    names = ("temperature", "alpha", "lr", *row.get("of_loss", ()))
    name_of_loss = row.get("loss") or (config.default.loss if distilled else "")
    loss = [f"loss {plain(name_of_loss)}"] if name_of_loss else []
    shown = ", ".join(loss + [f"{setting} {row[setting]:.4g}" for setting in names if setting in row])
    recipe = _recipe(config.train, row)
    mean = f"{row['test_mean']:.2f} %" + (f" ± {row['test_sd']:.2f}" if row["test_sd"] is not None else "")
    other = [] if is_chosen else [f"This is the row “{name}” of that study, not the student that it chose.", ""]
    return [
        *_title(config, distilled),
        "| | |", "|---|---|",
        *_data(config, outcome, row if distilled else None),
        f"| hyperparameters | {shown} |",
        f"| training | {_show(recipe)} |",
        f"| parameters | {row['parameters']:,} |",
        f"| test accuracy over {counted(row['seeds'], 'seed')} | {mean} |",
        f"| gain | {_gain_in_card(outcome, row)} |", "",
        *other, outcome["verdict"], "", plain(outcome["scope"]), "",
        origin, "",
    ]


def _about(config: StudyConfig) -> list[str]:
    return [plain(config.about), ""] if config.about.strip() else []


def _title(config: StudyConfig, distilled: bool) -> list[str]:
    what = "distilled" if distilled else "trained on labels alone"
    return [f"# {plain(config.student.model)}, {what} by the study {config.name}", "", *_about(config)]


def _data(config: StudyConfig, outcome: dict[str, Any], distilled: dict[str, Any] | None) -> list[str]:
    """Rows of the card's table. distilled: the hyperparameters, if it was."""
    sizes = outcome["data"]
    by_teacher = f", {sizes['train']} by the teacher" if distilled else ""
    title = config.all_teachers[distilled.get("teacher", MAIN)].title if distilled else ""
    teacher = [f"| teacher | {plain(title)} |"] if distilled else []
    return [f"| data | {plain(config.data.source)}: {sizes['student_train']} training images seen by the student"
            f"{by_teacher}; {sizes['test']} test images |", *teacher]


def of_teacher(config: StudyConfig, teacher: TeacherSettings, done: dict[str, Any]) -> list[str]:
    """The first lines of a teacher's card. done: the done-mark of its stage."""
    lines = [f"# {plain(done['model'])}, teacher of the study {config.name}", "", *_about(config)]
    if not teacher.is_given:
        recipe = _recipe(teacher.train_settings, done["parameters"]) | {"lr": done["parameters"]["lr"]}
        lines += [f"Training: {_show(recipe)}.", ""]
    return lines


def whole(first: list[str], config: StudyConfig, deployable: Deployable, details: dict[str, Any], name: str,
          study: StudyFiles) -> str:
    """The whole card, Markdown with a header in YAML, as the Hugging Face hub reads it.

    first: its first lines. details: of export.json. name: of the folder."""
    model = deployable.model
    lines = [header(config, deployable, details, name), *first, *_measured(details["formats"]), "",
             *_calibrated(details.get("calibration")),
             f"It takes images of {model.size}x{model.size} pixels in 0..1, normalised with "
             f"{models.show_normalisation(model.mean, model.std)}.", ""]
    for kind in details["formats"]:
        lines += ["```python", *FORMAT[kind].usage(name, deployable), "```", ""]
    lines += _deployment(deployment(study))
    begun, versions = _begun(deployable), ", ".join(f"{name} {details['versions'][name]}" for name in PACKAGES)
    lines += ["## Origin", "", *begun,
              f"Splits: {_splits(deployable)}. Exported with {versions}. `{EXPORT_KEY_FILE}` names the study's "
              "stage that it came from.", "",
              "**License: none is chosen yet.** Before you publish this model, add `license: …` to the header of this "
              f"file. Mind the licenses of the images{' and of the pretrained weights' if begun else ''}.", ""]
    return "\n".join(lines)


def _calibrated(scaling: dict[str, Any] | None) -> list[str]:
    """What temperature scaling has changed. scaling: of export.json."""
    if scaling is None:
        return []
    before, after = (scaling["test"][when] for when in ("before", "after"))
    errors = [f"{100 * one['calibration_error']:.1f}" for one in (after, before)]
    return [f"Its logits are calibrated: the last layer is divided by {scaling['temperature']:.3g}, fitted on "
            f"{scaling['fitted_on']} validation images, which changes no prediction. On the test images the expected "
            f"calibration error is {errors[0]} points ({errors[1]} as trained), the negative log-likelihood "
            f"{after['nll']:.3f} ({before['nll']:.3f} as trained).", ""]


def _deployment(content: dict[str, Any] | None) -> list[str]:
    """The study's three models side by side. content: of deployment.json."""
    if content is None:
        return []
    head, *rows = ([plain(cell) for cell in row] for row in table(content))
    return ["## Cost and quality", "", plain(explanation(content)), "",
            *(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)), ""]


def _begun(deployable: Deployable) -> list[str]:
    """Where its training began, if that was not at random weights."""
    if name := base_model(deployable):
        return [f"Its training began with the weights [{name}](https://huggingface.co/{name}).", ""]
    if deployable.settings.pretrained:
        return ["Its training began with trained weights from a file.", ""]
    return []


def _splits(deployable: Deployable) -> str:
    splits = deployable.splits
    counts = {"training": splits.train, "of them seen by the student": splits.student_train,
              "validation": splits.validation, "test": splits.test}
    return ", ".join(f"{len(images)} {name}" for name, images in counts.items())


def _measured(formats: dict[str, dict[str, Any]]) -> list[str]:
    """What was measured of each written file."""
    first, *others = formats.items()
    lines = [f"Test accuracy of these very weights: {100 * first[1]['accuracy']:.2f} % on {first[1]['images']} images."]
    return lines + [f"As {kind}: {100 * found['accuracy']:.2f} %{shown_loss(found)}." for kind, found in others]


def shown_loss(found: dict[str, Any]) -> str:
    """What a quantised file loses, in words; empty for others. found: of export.json, for one format."""
    if "lost_points" not in found:
        return ""
    lost = found["lost_points"]
    return f", {abs(lost):.2f} points {'less' if lost > 0 else 'more'} than {found['of']}" if round(lost, 2) else \
        f", as much as {found['of']}"


def _recipe(training: TrainSettings, row: dict[str, Any]) -> dict[str, Any]:
    """The training settings that are not the defaults, with the values that a row of the results table has."""
    given = {"epochs": training.epochs} | changed(training)
    return given | {name: row[name] for name in OTHERS if not pd.isna(row.get(name))}


def _show(recipe: dict[str, Any]) -> str:
    shown = {name: significant(value, 4) if isinstance(value, float) else value for name, value in recipe.items()}
    return plain(", ".join(f"{name} {value}" for name, value in shown.items()))


def _gain_in_card(outcome: dict[str, Any], row: dict[str, Any]) -> str:
    if outcome["smoke"]:
        return "none is measured by a trial run"
    if row["gain"] is not None:
        return f"{show_interval(row['gain'])} over the tuned baseline"
    return "no interval: one seed" if row["seeds"] < 2 else "none: gains are measured against this very model"
