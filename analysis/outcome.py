"""The results of a study as data: the rows of its results table, its gain, its verdict. This becomes results.json.

Accuracies (`test_mean`, `best_validation`, `chance`) are in percent; their standard deviation over the seeds
(`test_sd`) and gains are in percentage points. A row's `gain` is over the tuned baseline; which intervals hold together
is in `kdstudy.analysis.families`. `gap_closed` is a share, 0 to 1. `parameters` is the number of a model's weights,
`compression` the teacher's over the student's. `pretrained` is there where the study trains the model from pretrained
weights. `of_loss` names the parameters in a row that only its loss has. `seconds` is the wall time per stage, in
seconds. `look` is there where the test images are looked at more than once: the fields of
`kdstudy.analysis.looks.Look`, `gain`, the points at which `confirm.gain` stops the study, and `shown`, what an earlier
look at fewer seeds had found. `controls` is there where the study has run any: see `kdstudy.analysis.controls`. So
is `audit`: see `kdstudy.analysis.audit`; its `statements` are what it finds, in words. `teachers` is there where the
study has several, see `kdstudy.analysis.teachers`; a row with `teachers` is over all of them, the others are over the
first alone. Where the study chooses among teachers, `teacher` names that of its answer, and in a row that of the row.
"""

from typing import Any

import numpy as np

from kdstudy.analysis.audit import audit
from kdstudy.analysis.audit_words import statements
from kdstudy.analysis.cautions import cautions
from kdstudy.analysis.controls import control_rows
from kdstudy.analysis.evidence import evidence
from kdstudy.analysis.families import compare, runs_of
from kdstudy.analysis.gain import gap_closed, gap_to_teacher, over_seeds
from kdstudy.analysis.learned import failed_runs, rises
from kdstudy.analysis.looks import first_shown, present_look
from kdstudy.analysis.settings import of_another_teacher
from kdstudy.analysis.stage_names import in_order, stage_for
from kdstudy.analysis.study_files import SEARCH_OF, StudyFiles, is_row
from kdstudy.analysis.teachers import crossed, teacher_rows
from kdstudy.analysis.verdict import scope, verdict


def results(study: StudyFiles) -> dict[str, Any]:
    """The content of results.json, in the units above. Rows of stages that are not done are left out.

    Raises ValueError where a stage's files do not fit together.
    """
    rows = _teacher_rows(study) + _student_rows(study)
    finished = {name: done for name in in_order(study.description["stages"]) if (done := study.done(name))}
    outcome: dict[str, Any] = {
        "study": study.description["name"],
        "smoke": bool(study.config.get("smoke")),
        "data": study.description.get("data"),
        "rows": rows,
        "primary": study.primary,
        "chance": 100 * study.chance if study.confirmation else None,
        "gain": next((row["gain"] for row in rows if is_row(row, "distilled", study.primary)), None),
        "gain_over_default_baseline": _gain_over_default(study),
        "evidence": evidence(study),
        "transfer": transfer(study),
        "published": study.config.get("published"),
        "machine": study.description.get("machine"),
        "seconds": {name: round(done["seconds"], 1) for name, done in finished.items()},
        "taken_from": {name: done["taken_from"] for name, done in finished.items() if "taken_from" in done},
    }
    if study.teacher_choice:
        outcome["teacher"] = study.teacher
    if study.confirmation and not (look := present_look(study)).is_single:
        outcome["look"] = {"number": look.number, "seeds": look.seeds, "level": look.level, "plan": list(look.plan),
                           "planned": look.planned, "gain": study.config.get("confirm", {}).get("gain"),
                           "shown": first_shown(study)}
    if study.confirmation and (teachers := teacher_rows(study)):
        outcome["teachers"] = teachers
    if study.confirmation and (controls := control_rows(study)):
        outcome["controls"] = [row | _of_loss(study, row) for row in controls]
    if study.confirmation and (audited := audit(study)):
        outcome["audit"] = audited | {"statements": [] if outcome["smoke"] else statements(audited)}
    failed = failed_runs(study) if study.confirmation else []
    outcome["failed_runs"] = [{"arm": run.arm, "configuration": run.configuration, "seed": run.seed,
                               "test_accuracy": run.accuracy} for run in failed]
    outcome["cautions"] = cautions(study, outcome, failed, rises(study)) if study.confirmation else []
    outcome["verdict"] = verdict(outcome)
    outcome["scope"] = scope(study, outcome, failed)
    return outcome


def transfer(study: StudyFiles) -> str | None:
    """From what to what knowledge goes: `same architecture`, or the kinds of both, such as `CNN → Transformer`."""
    teacher, student = study.teacher_done(), study.done("baseline")
    if teacher is None or student is None or not student.get("kind"):
        return None
    if not teacher.get("kind"):
        return f"given logits → {student['kind']}"
    if teacher["family"] == student["family"]:
        return "same architecture"
    return f"{teacher['kind']} → {student['kind']}"


def _teacher_rows(study: StudyFiles) -> list[dict[str, Any]]:
    done, correct = study.teacher_done(), study.teacher_correct()
    if done is None or correct is None:
        return []
    return [{
        "arm": "teacher", **({"teacher": study.teacher} if study.teacher_choice else {}),
        "configuration": "tuned" if done["trials"] > 1 else "default",
        "model": done.get("model") or study.config["teacher"]["model"],
        **_pretrained(_teacher_section(study)),
        **done["parameters"],
        "parameters": done["model_parameters"], "compression": 1.0 if done["model_parameters"] else None,
        "trials": done["trials"], "seeds": 1, "test_mean": 100 * float(correct.mean()), "test_sd": None,
        "best_validation": 100 * done["best_validation"], "gain": None, "gap_closed": None,
    }]


def _teacher_section(study: StudyFiles) -> dict[str, Any]:
    """The settings of the answer's teacher."""
    return of_another_teacher(study.config["teacher"], study.config.get("teachers", {}).get(study.teacher, {}))


def _student_rows(study: StudyFiles) -> list[dict[str, Any]]:
    if study.confirmation is None:
        return []
    baseline = study.confirmed["baseline", "tuned"]
    whose = {row["parameters"].get("teacher", study.teacher) for row in study.confirmation["rows"]}
    gaps = {name: gap_to_teacher(study.teacher_correct(stage_for("teacher_logits", name)), baseline) for name in whose}
    rows, over_all = [], crossed(study)
    answer = runs_of(study.confirmed_row("distilled", study.primary))
    for row in study.confirmation["rows"]:
        right = study.confirmed[row["arm"], row["configuration"]]
        teacher = row["parameters"].get("teacher", study.teacher)
        own_gain = compare(study, (row["arm"], row["configuration"]), ("baseline", "tuned"))
        rows.append({
            "arm": row["arm"], "configuration": row["configuration"],
            "primary": is_row(row, "distilled", study.primary), "model": study.config["student"]["model"],
            **_pretrained(study.config["student"]), **row["parameters"], **_of_loss(study, row["parameters"]),
            **_sizes(study, teacher),
            **_searched(study, row),
            **(over_seeds(right) if over_all is None or runs_of(row) != answer else _over_teachers(over_all)),
            "best_validation": _best_validation(study, row), "gain": own_gain,
            # The lead is the first teacher's, and not to be compared with a gain over all.
            "gap_closed": gap_closed(own_gain, gaps[teacher])
            if row["arm"] == "distilled" and "teachers" not in (own_gain or {}) else None,
        })
    return rows


def _over_teachers(right: np.ndarray) -> dict[str, Any]:
    """As `over_seeds`, of students of several teachers, (teachers, seeds, N) bool; test_sd is that of all runs."""
    accuracies = right.mean(2)
    return {"teachers": len(right), "seeds": right.shape[1], "test_mean": 100 * float(accuracies.mean()),
            "test_sd": 100 * float(accuracies.std(ddof=1))}


def _of_loss(study: StudyFiles, parameters: dict[str, Any]) -> dict[str, Any]:
    """of_loss: the names of the parameters that only some losses have, where a row names its loss."""
    names = [name for name in parameters if name in study.of_distillation - {"teacher", "loss", "temperature", "alpha"}]
    return {"of_loss": names} if "loss" in parameters else {}


def _pretrained(settings: dict[str, Any]) -> dict[str, bool]:
    """Says so of a model that the study trains from pretrained weights."""
    return {"pretrained": True} if settings.get("pretrained") and not settings.get("trained") else {}


def _sizes(study: StudyFiles, teacher: str) -> dict[str, Any]:
    """teacher: the name of the one that a row learns from, or is compared with."""
    weights = (study.teacher_done(teacher) or {}).get("model_parameters")
    student = study.confirmation["model_parameters"]
    return {"parameters": student, "compression": weights / student if weights else None}


def _searched(study: StudyFiles, row: dict[str, Any]) -> dict[str, Any]:
    """The trials among which a row was chosen, None where it had none of its own, and its trial in the search."""
    trials = {"default": 1, "tuned": study.done(SEARCH_OF[row["arm"]])["trials"]}
    return {"trials": trials.get(row["configuration"]), "search_trial": row["trial"]}


def _best_validation(study: StudyFiles, row: dict[str, Any]) -> float | None:
    """Of the search, where the row was tried; of the finalists where it was not, but was chosen among them."""
    share = study.last_accuracy(SEARCH_OF[row["arm"]], row["trial"])
    if share is None and row["configuration"] == "tuned":
        share = (study.choice(SEARCH_OF[row["arm"]]) or {}).get("best_validation")
    return None if share is None else 100 * share


def _gain_over_default(study: StudyFiles) -> dict[str, Any] | None:
    """The gain over the baseline at its default point, for the search may have chosen a worse one."""
    if study.confirmation is None:
        return None
    return compare(study, ("distilled", study.primary), ("baseline", "default"))
