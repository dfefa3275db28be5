"""A series of studies that differ in one setting: what the gain is at each value, and whether it changes along them.

`results` is the content of series.json. Accuracies are in percent, gains in percentage points, the slope in percentage
points per doubling of `amount`: epochs, or the number of labelled images that the student sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from kdstudy.analysis import outcome as outcomes
from kdstudy.analysis.gain import SIGNIFICANT
from kdstudy.analysis.number_text import counted, show_bounds, show_interval, show_points
from kdstudy.analysis.page.series_page import exhibits, series_page
from kdstudy.analysis.report import as_json, write_changed
from kdstudy.analysis.study_files import StudyFiles, is_row
from kdstudy.analysis.tables import series_markdown
from kdstudy.analysis.trend import trend

Value = int | float


@dataclass(frozen=True)
class Words:
    """How to speak of a setting. axis: its title. unit: of an amount. more: of larger amounts. doubled: what doubles.
    """

    axis: str
    unit: str
    more: str
    doubled: str


WORDS = {
    "train.epochs": Words("training epochs of the student", "epoch", "The longer the student trains", "its epochs"),
    "data.student_images": Words("labelled images of the student", "image",
                                 "The more labelled images the student sees", "their number"),
    "teacher.epochs": Words("training epochs of the teacher", "epoch", "The longer the teacher trains", "its epochs"),
}


def build(out: Path, name: str, setting: str, folders: Mapping[Value, Path]) -> bool:
    """Write series.json, series.md and series.html to `results/` in the series' folder `out`.

    name: of the series. folders: the members' folders by the setting's value. Returns whether any file changed. Raises
    ValueError where a stage's files do not fit together.
    """
    found = results(name, setting, folders)
    folder = out / "results"
    folder.mkdir(parents=True, exist_ok=True)
    contents = {"series.json": as_json(found), "series.md": series_markdown(found), "series.html": series_page(found)}
    return any([write_changed(folder / file, content) for file, content in contents.items()])


def results(name: str, setting: str, folders: Mapping[Value, Path]) -> dict[str, Any]:
    """The content of series.json, in the units above; folders as for `build`.

    Members are in the order of their amounts. `slope` is None until two members are confirmed, and `why_not` says why.
    Raises ValueError where a stage's files do not fit together.
    """
    words = WORDS[setting]
    studies = {value: StudyFiles(folder) for value, folder in folders.items()}
    members = sorted((_member(setting, value, study) for value, study in studies.items()),
                     key=lambda member: member["amount"])
    confirmed = [member for member in members if member["distilled"]]
    found, why_not = trend([studies[member["value"]] for member in confirmed],
                           [member["amount"] for member in confirmed])
    content = {"series": name, "setting": setting, "axis": words.axis, "unit": words.unit, "doubled": words.doubled,
               "smoke": any(member["smoke"] for member in members), "members": members, "slope": found,
               "why_not": why_not}
    return content | {"sentence": sentence(content), "ends": _ends(content), "caveats": _caveats(content, studies)}


def figures(content: dict[str, Any]) -> dict[str, go.Figure]:
    """The figures of the page by name, `gain` and `accuracy`, those that can be drawn by now. content: of `results`."""
    return {exhibit.name: exhibit.figure for exhibit in exhibits(content) if exhibit.figure}


def _member(setting: str, value: Value, study: StudyFiles) -> dict[str, Any]:
    outcome = outcomes.results(study)
    amount = outcome["data"]["student_train"] if setting == "data.student_images" else value
    primary = outcome["primary"]

    def row(arm: str, configuration: str) -> dict[str, Any] | None:
        return next((row for row in outcome["rows"] if is_row(row, arm, configuration)), None)

    teacher = next((row for row in outcome["rows"] if row["arm"] == "teacher"), None)
    return {"value": value, "amount": amount, "study": outcome["study"], "folder": study.folder.name,
            "smoke": outcome["smoke"], "primary": primary, "teacher": teacher, "baseline": row("baseline", "tuned"),
            "distilled": row("distilled", primary), "gain": outcome["gain"], "verdict": outcome["verdict"]}


def sentence(content: dict[str, Any]) -> str:
    """Whether the gain changes along the series, in a sentence about the slope alone."""
    if content["smoke"]:
        return "A trial run: the series works; its numbers say nothing."
    found, words = content["slope"], WORDS[content["setting"]]
    if found is None:
        return f"Whether the gain changes along the series is not known: {content['why_not']}."
    amount = (f"{show_points(found['mean'])} points with each doubling of {words.doubled} (95 % interval "
              f"{show_bounds(found)}, on {counted(found['seeds'], 'paired seed')}).")
    if found["p"] >= SIGNIFICANT:
        return f"{words.more}, the gain is not shown to change: {amount}"
    return f"{words.more}, the {'larger' if found['mean'] > 0 else 'smaller'} the gain from distillation: {amount}"


def _ends(content: dict[str, Any]) -> str:
    """The gains of the first and the last member, each with its own interval."""
    known = [member for member in content["members"] if member["gain"]]
    if len(known) < 2 or content["smoke"]:
        return ""
    first, last = known[0], known[-1]
    unsure = [member["gain"]["p"] >= SIGNIFICANT for member in (first, last)]
    doubt = {(True, True): " Neither", (True, False): " The former", (False, True): " The latter"}.get(tuple(unsure))
    verb = " is shown" if all(unsure) else " is not shown"
    return (f"At {counted(first['amount'], content['unit'])} the gain is {show_interval(first['gain'])}, at "
            f"{counted(last['amount'], content['unit'])} it is {show_interval(last['gain'])}."
            + (f"{doubt}{verb} to differ from zero." if doubt else ""))


def _caveats(content: dict[str, Any], studies: Mapping[Value, StudyFiles]) -> list[str]:
    """What a reader must know before believing the sentence."""
    if content["smoke"]:
        return []
    found, said = content["slope"], []
    if found:
        said.append("The slope is that of the best straight line through the gains over the logarithm of the setting; "
                    "its interval, and no other, is what the sentence rests on. It treats seeds and test images, which "
                    "the studies share, as samples.")
    if found and len({member["distilled"]["seeds"] for member in content["members"] if member["distilled"]}) > 1:
        said.append(f"The slope uses the first {found['seeds']} seeds, which all studies have.")
    said.append("The interval of each gain holds for that study alone: of many, some leave out zero by chance.")
    if any(isinstance(study.config.get("confirm", {}).get("seeds"), list) for study in studies.values()):
        said.append("The studies were to stop at the first number of seeds that decides, which the slope does not "
                    "take into account.")
    said.append("Each study has a search of its own; what another search would have chosen is in none of the "
                "intervals.")
    return said
