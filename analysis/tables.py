"""The results as text: the cells of a table row, the table in Markdown, and the table of several studies.

Accuracies are in percent, gains in percentage points. results.md and the README's blocks hold the Markdown, so a change
of a word changes committed files. `console_table` has the table for a terminal.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kdstudy.analysis.audit_words import COLUMNS as AUDIT_COLUMNS
from kdstudy.analysis.audit_words import audit_cells
from kdstudy.analysis.number_text import counted, gain_cell, show_number, show_p, show_points
from kdstudy.analysis.study_files import find_row
from kdstudy.analysis.verdict import verdict

COLUMNS = ("model", "configuration", "parameters", "compression", "trials", "best validation (selected)", "seeds",
           "test accuracy", "gain over tuned baseline [95 %]", "gap closed")
NUMERIC = COLUMNS[2:]
CONTROL_COLUMNS = ("control", "configuration", "epochs", "seeds", "test accuracy",
                   "gain of the distilled student [95 %]", "p (Holm)")
TEACHER_COLUMNS = ("teacher", "best validation (selected)", "its own test accuracy", "seeds",
                   "test accuracy of its students", "gain over tuned baseline [95 %]")
OTHERS = ("weight_decay", "warmup", "batch_size", "optimizer", "accumulate", "warmup_epochs", "min_lr", "layer_decay",
          "head_lr", "freeze", "clip_grad", "ema", "label_smoothing", "drop_path", "dropout")
TAKEAWAYS = ("study", "teacher → student", "teacher [%]", "baseline [%]", "distilled [%]", "gain [95 %]",
             "both at default")
PUBLISHED = "Published: single runs, best test epoch."
NUMERIC_TAKEAWAYS = TAKEAWAYS[2:]
TAKEAWAYS_BLOCK = "takeaways"


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table as text, in the order of COLUMNS."""
    return [
        f"{named_teacher(row)} ({row['model']})" if row["arm"] == "teacher" else row["arm"],
        _configuration(row),
        f"{row['parameters']:,}" if row["parameters"] else "",
        "" if row["compression"] is None else f"{row['compression']:.1f}×",
        _trials(row),
        "" if row["best_validation"] is None else f"{row['best_validation']:.2f} %",
        _seeds(row),
        _accuracy(row),
        gain_cell(row["gain"]),
        "" if row["gap_closed"] is None else f"{100 * row['gap_closed']:.0f} %",
    ]


def control_cells(row: dict[str, Any]) -> list[str]:
    """A row of the table of controls as text, in the order of CONTROL_COLUMNS."""
    shown = ", ".join(filter(None, [show_hyperparameters(row), show_others(row)]))
    p = "" if row["gain"] is None else show_p(row["gain"]["p"])
    return [row["control"].replace("_", " "), shown, f"{row['epochs']:,}", str(row["seeds"]), _accuracy(row),
            gain_cell(row["gain"]), p]


def teacher_cells(row: dict[str, Any]) -> list[str]:
    """A row of the table of teachers as text, in the order of TEACHER_COLUMNS."""
    own = "" if row["teacher_accuracy"] is None else f"{row['teacher_accuracy']:.2f} %"
    return [f"{row['teacher']}", f"{row['best_validation']:.2f} %", own, str(row["seeds"]), _accuracy(row),
            gain_cell(row["gain"])]


def _seeds(row: dict[str, Any]) -> str:
    """5, or 5 × 3 teachers."""
    return f"{row['seeds']} × {row['teachers']} teachers" if "teachers" in row else str(row["seeds"])


def _trials(row: dict[str, Any]) -> str:
    """Empty for a configuration without trials of its own: its values come from another configuration's search."""
    return str(row["trials"]) if row["trials"] else "given" if row["arm"] == "teacher" else ""


def _configuration(row: dict[str, Any]) -> str:
    shown = ", ".join(filter(None, [show_hyperparameters(row), show_others(row)]))
    return shown or "given" if row["arm"] == "teacher" else f"{row['configuration']}: {shown}"


def named_teacher(row: dict[str, Any]) -> str:
    """teacher, or teacher small where the study chose among several. row: the teacher's own."""
    return " ".join(filter(None, ["teacher", row.get("teacher")]))


def show_hyperparameters(row: dict[str, Any], digits: int = 3) -> str:
    """T 10.4, α 0.644, lr 1.85e-3: those of the three that the row has, after its teacher and its loss and before that
    one's own."""
    names = (("temperature", "T"), ("alpha", "α"), ("lr", "lr"), *((name, name) for name in row.get("of_loss", ())))
    shown = [f"{label} {show_number(row[name], digits)}" for name, label in names if name in row]
    whose = [f"teacher {row['teacher']}"] if row.get("arm") != "teacher" and row.get("teacher") else []
    return ", ".join([*whose, row["loss"], *shown] if row.get("loss") else [*whose, *shown])


def show_others(row: dict[str, Any]) -> str:
    """weight_decay 0.05, ema 0.999: the other hyperparameters that the row has, under their settings' names."""
    return ", ".join(f"{name} {value if isinstance(value, str) else show_number(value)}" for name in OTHERS
                     if (value := row.get(name)) is not None)


def markdown(outcome: dict[str, Any]) -> str:
    """results.md: the table, the verdict, its scope and the wall time."""
    lines = _markdown_table(COLUMNS, NUMERIC, map(cells, outcome["rows"]))
    if teachers := outcome.get("teachers"):
        lines += ["", *_markdown_table(TEACHER_COLUMNS, TEACHER_COLUMNS[1:], map(teacher_cells, teachers))]
    if controls := outcome.get("controls"):
        lines += ["", *_markdown_table(CONTROL_COLUMNS, CONTROL_COLUMNS[2:], map(control_cells, controls))]
    if audit := outcome.get("audit"):
        lines += ["", *_markdown_table(AUDIT_COLUMNS, AUDIT_COLUMNS[4:], audit_cells(audit)),
                  *(line for text in audit["statements"] for line in ("", plain(text)))]
    return "\n".join([*lines, "", f"**{outcome['verdict']}**", "", plain(outcome["scope"]), "",
                      plain(wall_time(outcome)), ""])


def _markdown_table(columns: Sequence[str], numeric: Sequence[str], rows: Iterable[list[str]]) -> list[str]:
    line = "|".join("---:" if column in numeric else "---" for column in columns)
    return ["| " + " | ".join(columns) + " |", f"|{line}|", *map(_markdown_row, rows)]


def _markdown_row(texts: list[str]) -> str:
    return "| " + " | ".join(map(plain, texts)) + " |"


def plain(text: str) -> str:
    """The text on one line of Markdown, escaped so that it neither ends a table cell nor begins an HTML tag."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def wall_time(outcome: dict[str, Any]) -> str:
    """The wall time of each stage and the machine, in a sentence."""
    taken = outcome.get("taken_from", {})
    stages = ", ".join(f"{name.replace('_', ' ')} {_clock(seconds)}" for name, seconds in outcome["seconds"].items()
                       if name not in taken)
    machine = f" on {outcome['machine']}" if outcome.get("machine") else ""
    others = [f"{name.replace('_', ' ')} {'were' if name.endswith('s') else 'was'} taken from {study}"
              for name, study in taken.items()]
    return f"Wall time{machine}: {'; '.join(filter(None, [stages, *others]))}."


def _clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 300 else f"{seconds / 60:.0f} min"


def takeaways(outcomes: list[dict[str, Any]], names: list[str] | None = None) -> str:
    """Several studies side by side, as Markdown: who learned from whom, and what distillation gained.

    names: what to call the studies, instead of their own names.
    """
    named = list(zip(names or [outcome["study"] for outcome in outcomes], outcomes, strict=True))
    lines = _markdown_table(TAKEAWAYS, NUMERIC_TAKEAWAYS, (takeaway(name, outcome) for name, outcome in named))
    verdicts = [f"- {plain(name)} ({plain(setting(outcome))}): {verdict(outcome, figures=False)}"
                for name, outcome in named]
    note = ["", PUBLISHED] if any(outcome["published"] for _, outcome in named) else []
    return "\n".join([*lines, "", *verdicts, *note, ""])


def takeaway(name: str, outcome: dict[str, Any]) -> list[str]:
    """A study's row of that table, in the order of TAKEAWAYS. Both gains are of the distilled student over the
    baseline: where both are tuned, and where both are at the default point."""
    rows = {(row["arm"], row["configuration"]): row for row in outcome["rows"]}
    teacher = next((row for row in outcome["rows"] if row["arm"] == "teacher"), None)
    tuned, at_default = rows.get(("distilled", outcome["primary"])), (outcome.get("evidence") or {}).get("default")
    return [
        name, " → ".join(_model(row) for row in (teacher, tuned) if row),
        *("" if row is None else show_accuracy(row) for row in (teacher, rows.get(("baseline", "tuned")), tuned)),
        gain_cell(tuned and tuned["gain"]), gain_cell(at_default),
    ]


def setting(outcome: dict[str, Any]) -> str:
    """From what to what knowledge goes in a study, on which images and seeds, and what was published of such a pair."""
    data, tuned = outcome["data"], find_row(outcome, "distilled", outcome["primary"])
    said = [outcome["transfer"], f"{len(data['classes'])} classes, {data['student_train']:,} images, "
                                 f"{data['image_size']} px" + (f", {counted(tuned['seeds'], 'seed')}" if tuned else "")]
    if published := outcome["published"]:
        said.append(f"published for {published['pair']}: {show_points(published['gain'])}")
    return "; ".join(filter(None, said))


def series_columns(content: dict[str, Any]) -> list[str]:
    """The columns of the table of a series of studies. content: of series.json."""
    return [content["axis"], "distilled configuration", "seeds", "teacher", "baseline", "distilled", "gain [95 %]"]


def series_cells(content: dict[str, Any], member: dict[str, Any]) -> list[str]:
    """A study's row of that table as text. member: of the series."""
    distilled = member["distilled"]
    return [counted(member["amount"], content["unit"]), _configuration(distilled) if distilled else "not confirmed yet",
            str(distilled["seeds"]) if distilled else "", _accuracy(member["teacher"]), _accuracy(member["baseline"]),
            _accuracy(distilled), gain_cell(member["gain"])]


def series_markdown(content: dict[str, Any]) -> str:
    """A series of studies as Markdown: the table, the sentence about its slope, and what to know of it."""
    columns = series_columns(content)
    lines = _markdown_table(columns, columns[2:], (series_cells(content, member) for member in content["members"]))
    said = [f"**{content['sentence']}**", content["ends"], " ".join(content["caveats"])]
    return "\n".join([*lines, *(line for text in said if text for line in ("", plain(text))), ""])


def _model(row: dict[str, Any]) -> str:
    size, name = row["parameters"], row["model"]
    shown = [f"{size / 1e6:.{1 if size >= 1e6 else 2}f} M"] if size else []
    shown += ["pretrained"] if row.get("pretrained") else []
    if "/" in name:  # a file or folder given as the teacher
        name = Path(name).stem
    elif ":" not in name:  # timm's name without its tag, and the sizes that are usual for it
        name = re.sub(r"_patch\d+_\d+$", "", name.split(".")[0])
    return f"{name} ({', '.join(shown)})" if shown else name


def _accuracy(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{show_accuracy(row)} %"


def show_accuracy(row: dict[str, Any]) -> str:
    """71.84 ± 0.61, in percent; without the standard deviation where there is one run."""
    return f"{row['test_mean']:.2f}" + ("" if row["test_sd"] is None else f" ± {row['test_sd']:.2f}")


def readme_markers(name: str) -> tuple[str, str]:
    """The two lines of a Markdown file between which the results of a study stand."""
    return f"<!-- kdstudy results: {name} -->", f"<!-- end of kdstudy results: {name} -->"


def rewrite_block(readme: Path, name: str, content: str) -> bool:
    """Replace the text between the two markers of a name. Returns whether the file changed.

    Raises ValueError where the markers are missing.
    """
    text = readme.read_text(encoding="utf-8")
    begin, end = readme_markers(name)
    if begin not in text or end not in text.split(begin, 1)[1]:
        raise ValueError(f"{readme} has no markers for these results; add the lines {begin} and {end}")
    before, rest = text.split(begin, 1)
    after = rest.split(end, 1)[1]
    changed = f"{before}{begin}\n{content}{end}{after}"
    if changed != text:
        readme.write_text(changed, encoding="utf-8")
    return changed != text


def has_block(readme: Path, name: str) -> bool:
    """Whether a Markdown file has the first marker of a name."""
    return readme_markers(name)[0] in readme.read_text(encoding="utf-8")
