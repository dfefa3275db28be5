"""What the teacher, the tuned baseline and the distilled student cost to run, and how good they are.

`kdstudy run` measures the costs once the study is done, and writes them with the qualities to results/deployment.json;
here that file is read, and nothing is measured. In it:

    key        which models it is about, as `key` returns it
    measured   where and how: device, hardware, threads, torch, precision, date
    costs      of `teacher` and of `student`, one architecture for both arms: model; models, how many run together;
               image_size, pixels; parameters; multiply_adds of one image; bytes of the weights as safetensors; latency
               by batch size, in milliseconds: median, low and high, the quartiles, and the number of repetitions
    speed_up   by batch size, the teacher's latency over the student's, by pairs of neighbouring repetitions: median,
               low and high, the quartiles; None where one of the two is not known
    quality    of `teacher`, `baseline` and `distilled`: accuracy, in percent; low and high, its 95 % interval; over,
               what that takes as samples; runs; calibration_error, in points; nll, the negative log-likelihood in nats.
               The last three are means over the runs.

What is not known is None, with `reason` saying why where it is a cost.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from kdstudy.analysis.number_text import counted, significant
from kdstudy.analysis.predictions import Calibration, likelihood_loss
from kdstudy.analysis.significance import accuracy_interval
from kdstudy.analysis.stage_names import stage_for
from kdstudy.analysis.study_files import StudyFiles, read_columns, read_json

FILE = "results/deployment.json"  # in a study's folder
BATCHES = ("1", "32")
NAMES = {"teacher": "teacher", "baseline": "tuned baseline", "distilled": "distilled student"}
NUMBER, SEVERAL = "a finite number", "a dict whose values are all like"  # in a shape, as `_fits` reads it
SPREAD = {"median": NUMBER, "low": NUMBER, "high": NUMBER, "repetitions": NUMBER}
COST = {"model": str, "models": NUMBER, **dict.fromkeys(("image_size", "parameters", "multiply_adds", "bytes"),
                                                        (NUMBER, None)), "latency": {SEVERAL: SPREAD}}
SHAPE = {
    "key": dict, "costs": {"teacher": COST, "student": COST}, "speed_up": {SEVERAL: (SPREAD, None)},
    "measured": {**dict.fromkeys(("device", "hardware", "precision", "torch", "date"), str), "threads": NUMBER},
    "quality": {SEVERAL: {**dict.fromkeys(("accuracy", "low", "high", "runs"), NUMBER), "over": str,
                          "calibration_error": (NUMBER, None), "nll": (NUMBER, None)}},
}
UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def key(study: StudyFiles) -> dict[str, Any]:
    """Which models of a confirmed study are compared: the teacher, and both arms' confirmed runs."""
    rows = {arm: study.confirmed_row(arm) for arm in ("baseline", "distilled")}
    return {"teacher": study.description["stages"].get(stage_for("teacher", study.teacher)),
            **{arm: {"stage": study.stage(row["stage"]).name, "runs": row["runs"]} for arm, row in rows.items()}}


def deployment(study: StudyFiles) -> dict[str, Any] | None:
    """The content of deployment.json; None where there is none, it is damaged, or it is about other models than the
    present ones."""
    content = read_json(study.folder / FILE)
    if not _fits(content, SHAPE) or not {"baseline", "distilled"} <= content["quality"].keys() <= NAMES.keys():
        return None
    return content if study.confirmation is not None and content["key"] == key(study) else None


def _fits(value: Any, shape: Any) -> bool:
    """Whether a JSON value has a shape: a type, NUMBER, None, a tuple of alternatives, or a dict of at least these keys
    or, under SEVERAL, of any. The study may be a stranger's."""
    if isinstance(shape, tuple):
        return any(_fits(value, one) for one in shape)
    if isinstance(shape, dict):
        if SEVERAL in shape:
            return isinstance(value, dict) and all(_fits(one, shape[SEVERAL]) for one in value.values())
        return isinstance(value, dict) and all(name in value and _fits(value[name], part)
                                               for name, part in shape.items())
    if shape is NUMBER:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value is shape if shape is None else isinstance(value, shape)


def quality(study: StudyFiles, measured: Calibration | None) -> dict[str, dict[str, Any]]:
    """How good each of the three is on the test images: see `quality` above. The confirmation must be done.

    measured: what `predictions.calibration` finds. Raises ValueError where a file cannot be read."""
    errors = {} if measured is None else dict(zip(measured.errors["arm"], measured.errors["error"], strict=True))
    right, losses = _right(study), _losses(study)
    found = {}
    for arm, seeds in right.items():
        low, high = accuracy_interval(seeds)
        over = "test images" if len(seeds) == 1 else f"{counted(len(seeds), 'seed')} and test images"
        found[arm] = {"accuracy": 100 * float(seeds.mean()), "low": 100 * low, "high": 100 * high, "over": over,
                      "runs": len(seeds), "calibration_error": errors.get(arm), "nll": losses.get(arm)}
    return found


def _right(study: StudyFiles) -> dict[str, np.ndarray]:
    """Which test images each of the three got right, (runs, N) bool; without a teacher that was not tested."""
    teacher = study.teacher_correct()
    arms = {arm: study.confirmed[arm, "tuned"] for arm in ("baseline", "distilled")}
    return arms if teacher is None else {"teacher": teacher[None], **arms}


def _losses(study: StudyFiles) -> dict[str, float]:
    """The negative log-likelihood of each whose logits are there, a mean over its runs."""
    found, teacher = {}, study.stage(stage_for("teacher_logits", study.teacher))
    files = {"teacher": [teacher / "test.parquet"]} if teacher else {}
    for arm in ("baseline", "distilled"):
        row = study.confirmed_row(arm)
        files[arm] = [study.stage(row["stage"]) / "runs" / f"{run:03d}" / "test.parquet" for run in row["runs"]]
    for arm, paths in files.items():
        if all(path.exists() and "logits" in pq.read_schema(path).names for path in paths):
            found[arm] = float(np.mean([_loss(path) for path in paths]))
    return found


def _loss(path: Path) -> float:
    table = read_columns(path, "label", "logits")
    return likelihood_loss(np.stack(table["logits"].to_numpy()), table["label"].to_numpy())


# -- as text ----------------------------------------------------------------------------------------------------------


def table(content: dict[str, Any]) -> list[list[str]]:
    """The figures as rows of texts; the first row is of headings. Of what is not known, a cell is a dash."""
    arms = [arm for arm in NAMES if arm in content["quality"]]
    costs = [content["costs"]["teacher" if arm == "teacher" else "student"] for arm in arms]
    qualities = [content["quality"][arm] for arm in arms]
    rows = [
        ["parameters", *(_or_dash(cost["parameters"], "{:,}".format) for cost in costs)],
        ["multiply-adds of an image", *(_or_dash(cost["multiply_adds"], short) for cost in costs)],
        ["size of the weights", *(_or_dash(cost["bytes"], lambda size: f"{short(size)}B") for cost in costs)],
    ]
    for batch in BATCHES:
        name = f"latency, {counted(int(batch), 'image')}"
        rows.append([name, *(_or_dash(cost["latency"].get(batch), show_latency) for cost in costs)])
        rows.append(["… speed-up over the teacher", *(_speed_up(content["speed_up"].get(batch), arm) for arm in arms)])
    return [["", *(NAMES[arm] for arm in arms)], *rows,
            ["test accuracy", *(f"{one['accuracy']:.2f} %" for one in qualities)],
            ["… 95 % interval", *(f"{one['low']:.2f} to {one['high']:.2f}" for one in qualities)],
            ["calibration error", *(_or_dash(one["calibration_error"], "{:.1f} points".format) for one in qualities)],
            ["negative log-likelihood", *(_or_dash(one["nll"], "{:.3f}".format) for one in qualities)]]


def explanation(content: dict[str, Any]) -> str:
    """What the figures are, where they were measured, and what is not known of them, in sentences."""
    where, costs = content["measured"], content["costs"]
    threads = "" if where["device"] != "cpu" else f", {counted(where['threads'], 'thread')}"
    text = (f"Latency of the forward pass, without reading and resizing images, in {where['precision']} on "
            f"{where['hardware']}{threads} (torch {where['torch']}, {where['date']}): the median of repetitions that "
            "took turns, and in brackets their quartiles. Baseline and distilled student are one architecture, "
            "measured once. Accuracy and calibration are means over the tuned rows’ seeds, as trained, on the test "
            "images; the intervals treat seeds and test images as samples, the teacher’s test images alone.")
    if (together := costs["teacher"]["models"] or 0) > 1:
        text += f" The teacher is {together} models, which run one after the other."
    for name, cost in costs.items():
        if isinstance(reason := cost.get("reason"), str):
            text += f" Of the {name}, {reason}."
    return text


def show_latency(latency: dict[str, Any]) -> str:
    """3.21 ms (3.18–3.30)."""
    median, low, high = (_three_digits(latency[name]) for name in ("median", "low", "high"))
    return f"{median} ms ({low}–{high})"


def short(value: float) -> str:
    """14.2 M, 680 k: three digits and the unit's prefix, powers of ten."""
    factor, prefix = next(((factor, prefix) for factor, prefix in UNITS if value >= factor), (1, ""))
    return f"{_three_digits(value / factor)} {prefix}"


def _speed_up(ratio: dict[str, Any] | None, arm: str) -> str:
    return "" if arm == "teacher" else _or_dash(ratio, lambda found: f"{_three_digits(found['median'])}×")


def _three_digits(value: float) -> str:
    """4.21, 18.3, 1,204: never with an exponent."""
    return f"{value:,.0f}" if value >= 100 else significant(value)


def _or_dash(value: Any, show: Any) -> str:
    return "–" if value is None else show(value)
