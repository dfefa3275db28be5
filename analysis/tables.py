"""The results table: as data, as Markdown, and for the terminal."""

from pathlib import Path
from typing import Any

from kdstudy.analysis.evidence import evidence, gain
from kdstudy.analysis.results import SEARCH_OF, STAGES, StudyFiles
from kdstudy.analysis.significance import Interval, crossed_interval, wilson_interval

SIGNIFICANT = 0.05


def results(study: StudyFiles) -> dict[str, Any]:
    """Everything the table says, in percent and percentage points; rows of stages that are not done are left out.

    Raises ValueError where a stage's files do not fit together.
    """
    rows = _teacher_rows(study) + _student_rows(study)
    outcome: dict[str, Any] = {
        "study": study.description["name"],
        "data": study.description.get("data"),
        "rows": rows,
        "gain": next((row["gain"] for row in rows if _is(row, "distilled", "tuned")), None),
        "gain_over_default_baseline": _gain_over_default(study),
        "evidence": evidence(study),
        "transfer": transfer(study),
        "published": study.config.get("published"),
        "machine": study.description.get("machine"),
        "seconds": {name: round(done["seconds"], 1) for name in STAGES if (done := study.done(name))},
        "taken_from": {name: done["taken_from"] for name in STAGES if "taken_from" in (done := study.done(name) or {})},
    }
    outcome["verdict"] = verdict(outcome)
    outcome["scope"] = scope(study, outcome)
    return outcome


def transfer(study: StudyFiles) -> str | None:
    """What learns from what: `same architecture`, or the kinds of both, such as `CNN → Transformer`."""
    teacher, student = study.done("teacher"), study.done("baseline")
    if teacher is None or student is None or not student.get("kind"):
        return None
    if not teacher.get("kind"):
        return f"given logits → {student['kind']}"
    if teacher["family"] == student["family"]:
        return "same architecture"
    return f"{teacher['kind']} → {student['kind']}"


def _is(row: dict[str, Any], arm: str, configuration: str) -> bool:
    return (row["arm"], row["configuration"]) == (arm, configuration)


def _teacher_rows(study: StudyFiles) -> list[dict[str, Any]]:
    done, correct = study.done("teacher"), study.teacher_correct()
    if done is None or correct is None:
        return []
    return [{
        "arm": "teacher", "configuration": "tuned" if done["trials"] > 1 else "default",
        "model": done.get("model") or study.config["teacher"]["model"], **done["parameters"],
        "parameters": done["model_parameters"], "compression": 1.0 if done["model_parameters"] else None,
        "trials": done["trials"], "seeds": 1, "test_mean": 100 * float(correct.mean()), "test_sd": None,
        "best_validation": 100 * done["best_validation"], "gain": None, "gap_closed": None,
    }]


def _student_rows(study: StudyFiles) -> list[dict[str, Any]]:
    confirm = study.confirmation
    if confirm is None:
        return []
    baseline, teacher = study.confirmed["baseline", "tuned"], study.teacher_correct()
    gap = crossed_interval(teacher[None, :] - baseline.astype(float)) if teacher is not None and len(baseline) > 1 \
        else None
    sizes = (study.done("teacher") or {}).get("model_parameters"), confirm["model_parameters"]
    rows = []
    for row in confirm["rows"]:
        right = study.confirmed[row["arm"], row["configuration"]]
        search = SEARCH_OF[row["arm"]]
        own_gain = None if _is(row, "baseline", "tuned") else gain(right, baseline)
        rows.append({
            "arm": row["arm"], "configuration": row["configuration"], "model": study.config["student"]["model"],
            **row["parameters"], "parameters": sizes[1], "compression": sizes[0] / sizes[1] if sizes[0] else None,
            "trials": {"default": 1, "tuned": study.done(search)["trials"]}.get(row["configuration"]),
            "search_trial": row["trial"],
            "seeds": len(right), "test_mean": 100 * float(right.mean()),
            "test_sd": 100 * float(right.mean(1).std(ddof=1)) if len(right) > 1 else None,
            "best_validation": _percent(study.last_accuracy(search, row["trial"])), "gain": own_gain,
            "gap_closed": _gap_closed(own_gain, gap) if row["arm"] == "distilled" else None,
        })
    return rows


def _gain_over_default(study: StudyFiles) -> dict[str, Any] | None:
    """The distilled student against the baseline at its default point: the search may have chosen a worse one."""
    if study.confirmation is None:
        return None
    return gain(study.confirmed["distilled", "tuned"], study.confirmed["baseline", "default"])


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _gap_closed(gain: dict[str, Any] | None, gap: Interval | None) -> float | None:
    """The share of the way from baseline to teacher; only where the teacher is significantly better."""
    if gain is None or gap is None or gap.low <= 0:
        return None
    return gain["mean"] / (100 * gap.mean)


def verdict(outcome: dict[str, Any]) -> str:
    """The answer in one sentence."""
    if not any(_is(row, "distilled", "tuned") for row in outcome["rows"]):
        return "No verdict yet: the confirmation has not been run."
    gain = outcome["gain"]
    if gain is None:
        return "No verdict: one seed allows no interval; set confirm.seeds to at least 2, better 5."
    figures = f"{show_interval(gain)} over the tuned baseline on {gain['seeds']} paired seeds"
    unseen = outcome["data"]["train"] - outcome["data"]["student_train"]
    saw = "saw only without labels" if outcome["data"].get("unlabelled") else "never saw"
    if gain["p"] >= SIGNIFICANT:
        few = f"; few-label transfer: the teacher saw {unseen} images that the student {saw}" if unseen else ""
        return f"No gain from distillation shown: {figures}, which includes zero{few}."
    if gain["mean"] < 0:
        return f"Distillation hurts: {figures}."
    few = f"; few-label transfer: the gain includes knowledge of {unseen} images that the student {saw}"
    return f"Distillation helps: {figures}{few if unseen else ''}{_unsure_over_default(outcome)}."


def _unsure_over_default(outcome: dict[str, Any]) -> str:
    """What takes a part of the verdict back: a default baseline that did better than the tuned one, and over which the
    gain is not shown."""
    over = outcome["gain_over_default_baseline"]
    if over is None or over["mean"] >= outcome["gain"]["mean"] or over["p"] < SIGNIFICANT:
        return ""
    return f"; but {show_interval(over)} over the baseline at its default point, which did better on the fresh seeds"


def scope(study: StudyFiles, outcome: dict[str, Any]) -> str:
    """What the verdict does not speak of."""
    confirm = study.confirmation
    if confirm is None:
        return "Scope: the confirmation on fresh seeds is still to come."
    text = (f"Scope: this teacher, this split, this search; {outcome['data']['test']} test images, "
            f"{len(confirm['rows'][0]['runs'])} fresh seeds, last epoch, tested once.")
    shared = (outcome["data"].get("duplicates") or {}).get("train_test", 0)
    if shared and not outcome["data"].get("dropped"):
        text += f" {shared} of the training images {'is' if shared == 1 else 'are'} among the test images too."
    if outcome["gain"]:
        text += f" {_samples(outcome['gain'])}"
    teacher = next((row["test_mean"] for row in outcome["rows"] if row["arm"] == "teacher"), None)
    tuned = next(row["test_mean"] for row in outcome["rows"] if _is(row, "baseline", "tuned"))
    if teacher is not None and teacher < tuned:
        text += (f" The teacher itself ({teacher:.2f} %) is {tuned - teacher:.2f} points worse than the tuned "
                 "baseline: a better one may teach more.")
    if _no_better_than_guessing(outcome):
        text += (f" No student does better than guessing one of {len(outcome['data']['classes'])} classes: this shows "
                 "that the study runs, and nothing about distillation.")
    default = outcome["gain_over_default_baseline"]
    untuned = next((row for row in outcome["rows"] if _is(row, "baseline", "default")), None)
    if default and untuned["gain"] and untuned["gain"]["mean"] > 0:
        text += (" On the fresh seeds the baseline did better at its default point than at the point that the search "
                 f"chose; over the default baseline the gain is {show_interval(default)}.")
    return text


def _samples(gain: dict[str, Any]) -> str:
    only = gain["seeds_only"]
    text = "The interval treats seeds and test images as samples"
    bounds = [show_points(interval[end]) for interval in (gain, only) for end in ("low", "high")]
    if bounds[:2] == bounds[2:]:
        return f"{text}; the {gain['seeds']} seeds alone already leave this much open."
    return f"{text}; over seeds alone, for these very images, it is {bounds[2]} to {bounds[3]}."


def _no_better_than_guessing(outcome: dict[str, Any]) -> bool:
    """Whether even the best row's Wilson interval, for the test images of one seed, reaches down to chance."""
    best = max((row["test_mean"] for row in outcome["rows"] if row["arm"] != "teacher"), default=0.0)
    return wilson_interval(best / 100, outcome["data"]["test"])[0] <= 1 / len(outcome["data"]["classes"])


def show_points(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def show_interval(gain: dict[str, Any]) -> str:
    low, high = show_points(gain["low"]), show_points(gain["high"])
    return f"{show_points(gain['mean'])} points (95 % interval {low} to {high})"


COLUMNS = ("model", "configuration", "parameters", "compression", "trials", "best validation (selected)", "seeds",
           "test accuracy", "gain over tuned baseline [95 %]", "gap closed")
NUMERIC = COLUMNS[2:]


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table as text, in the order of COLUMNS."""
    spread = "" if row["test_sd"] is None else f" ± {row['test_sd']:.2f}"
    gain = row["gain"]
    return [
        f"{row['arm']} ({row['model']})" if row["arm"] == "teacher" else row["arm"],
        _configuration(row),
        f"{row['parameters']:,}" if row["parameters"] else "",
        "" if row["compression"] is None else f"{row['compression']:.1f}×",
        _trials(row),
        "" if row["best_validation"] is None else f"{row['best_validation']:.2f} %",
        str(row["seeds"]),
        f"{row['test_mean']:.2f}{spread} %",
        "" if gain is None else f"{show_points(gain['mean'])} [{_low_high(gain)}]",
        "" if row["gap_closed"] is None else f"{100 * row['gap_closed']:.0f} %",
    ]


def _trials(row: dict[str, Any]) -> str:
    """None of their own: a teacher that was given, and what is read off another configuration's search."""
    return str(row["trials"]) if row["trials"] else "given" if row["arm"] == "teacher" else ""


def _configuration(row: dict[str, Any]) -> str:
    shown = _hyperparameters(row)
    return shown or "given" if row["arm"] == "teacher" else f"{row['configuration']}: {shown}"


def markdown(outcome: dict[str, Any]) -> str:
    """The table, the verdict and its scope."""
    lines = ["| " + " | ".join(COLUMNS) + " |",
             "|" + "|".join("---:" if column in NUMERIC else "---" for column in COLUMNS) + "|"]
    lines += [_markdown_row(cells(row)) for row in outcome["rows"]]
    return "\n".join([*lines, "", f"**{outcome['verdict']}**", "", outcome["scope"], "", plain(wall_time(outcome)), ""])


def _markdown_row(texts: list[str]) -> str:
    return "| " + " | ".join(map(plain, texts)) + " |"


def plain(text: str) -> str:
    """What Markdown shows as the text on one line: no name in it ends a cell or begins a tag."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def wall_time(outcome: dict[str, Any]) -> str:
    """Where the time went, and on what."""
    taken = outcome.get("taken_from", {})
    stages = ", ".join(f"{name.replace('_', ' ')} {_clock(seconds)}" for name, seconds in outcome["seconds"].items()
                       if name not in taken)
    machine = f" on {outcome['machine']}" if outcome.get("machine") else ""
    others = [f"{name.replace('_', ' ')} {'were' if name.endswith('s') else 'was'} taken from {study}"
              for name, study in taken.items()]
    return f"Wall time{machine}: {'; '.join(filter(None, [stages, *others]))}."


def _clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 300 else f"{seconds / 60:.0f} min"


TAKEAWAYS = ("type of transfer", "teacher → student", "data", "seeds", "teacher", "baseline", "distilled",
             "gain [95 %]", "both at the default point: gain [95 %]", "published gain (single run, best test epoch)")
TAKEAWAYS_BLOCK = "takeaways"


def takeaways(outcomes: list[dict[str, Any]], names: list[str] | None = None) -> str:
    """Several studies side by side, as Markdown: what learned from what, and what distillation was worth. names: to
    call them by, instead of their own."""
    names = names or [outcome["study"] for outcome in outcomes]
    lines = ["| " + " | ".join(TAKEAWAYS) + " |", "|" + "---|" * 3 + "---:|" * 6 + "---|"]
    lines += [_markdown_row(takeaway(outcome)) for outcome in outcomes]
    verdicts = [f"- {plain(name)}: {outcome['verdict']}" for name, outcome in zip(names, outcomes, strict=True)]
    return "\n".join([*lines, "", *verdicts, ""])


def takeaway(outcome: dict[str, Any]) -> list[str]:
    """A study's cells of the table of takeaways, in the order of TAKEAWAYS."""
    rows = {(row["arm"], row["configuration"]): row for row in outcome["rows"]}
    teacher = next((row for row in outcome["rows"] if row["arm"] == "teacher"), None)
    tuned, at_default = rows.get(("distilled", "tuned")), (outcome.get("evidence") or {}).get("default")
    baseline, data = rows.get(("baseline", "tuned")), outcome["data"]
    pair = " → ".join(_model(row) for row in (teacher, tuned) if row)
    return [
        outcome["transfer"] or "", pair or outcome["study"],
        f"{len(data['classes'])} classes, {data['student_train']:,} images, {data['image_size']} px",
        str(tuned["seeds"]) if tuned else "", _accuracy(teacher), _accuracy(baseline), _accuracy(tuned),
        _gain_cell(tuned and tuned["gain"]), _gain_cell(at_default), _published(outcome["published"]),
    ]


def _model(row: dict[str, Any]) -> str:
    size = row["parameters"]
    shown = "" if not size else f" ({size / 1e6:.1f} M)" if size >= 1e6 else f" ({size / 1e6:.2f} M)"
    name = row["model"]
    if "/" in name:  # a file or folder that was given
        name = Path(name).stem
    elif ":" not in name:  # timm's name without its tag
        name = name.split(".")[0]
    return name + shown


def _accuracy(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    return f"{row['test_mean']:.2f}" + ("" if row["test_sd"] is None else f" ± {row['test_sd']:.2f}") + " %"


def _gain_cell(gain: dict[str, Any] | None) -> str:
    return "" if gain is None else f"{show_points(gain['mean'])} [{_low_high(gain)}]"


def _published(published: dict[str, Any] | None) -> str:
    return f"{show_points(published['gain'])} ({published['pair']})" if published else ""


def console_table(outcome: dict[str, Any]) -> Any:
    """The table for a terminal of 80 columns, as a rich renderable."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for title in ("", "hyperparameters", "test accuracy %", "gain [95 %]"):
        table.add_column(title, overflow="fold")
    for row in outcome["rows"]:
        spread = "" if row["test_sd"] is None else f" ± {row['test_sd']:.2f}"
        gain = "" if row["gain"] is None else f"{show_points(row['gain']['mean'])} [{_low_high(row['gain'])}]"
        name = "teacher" if row["arm"] == "teacher" else f"{row['arm']} {row['configuration']}"
        table.add_row(Text(name), _hyperparameters(row, 2).replace(",", ""), f"{row['test_mean']:.2f}{spread}", gain,
                      style="bold" if _is(row, "distilled", "tuned") else "")
    return table


def _low_high(interval: dict[str, float]) -> str:
    return f"{show_points(interval['low'])}, {show_points(interval['high'])}"


def _hyperparameters(row: dict[str, Any], digits: int = 3) -> str:
    names = (("temperature", "T"), ("alpha", "α"), ("lr", "lr"))
    return ", ".join(f"{label} {show_number(row[name], digits)}" for name, label in names if name in row)


def show_number(value: float, digits: int = 3) -> str:
    """4, 0.5, 8.1e-4: short, and never with more zeros than one can count."""
    if 0 < abs(value) < 0.01:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
    return f"{value:.{digits}g}"


def readme_markers(name: str) -> tuple[str, str]:
    return f"<!-- kdstudy results: {name} -->", f"<!-- end of kdstudy results: {name} -->"


def rewrite_block(readme: Path, name: str, content: str) -> bool:
    """Replace what stands between the two markers of a name. Returns whether the file changed.

    Raises ValueError where the markers are not there.
    """
    text = readme.read_text(encoding="utf-8")
    begin, end = readme_markers(name)
    if begin not in text or end not in text.split(begin, 1)[1]:
        raise ValueError(f"{readme} has no place for the results; add the lines {begin} and {end}")
    before, rest = text.split(begin, 1)
    after = rest.split(end, 1)[1]
    changed = f"{before}{begin}\n{content}{end}{after}"
    if changed != text:
        readme.write_text(changed, encoding="utf-8")
    return changed != text


def has_block(readme: Path, name: str) -> bool:
    return readme_markers(name)[0] in readme.read_text(encoding="utf-8")
