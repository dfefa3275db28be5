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
from kdstudy.analysis.settings import flat
from kdstudy.analysis.study_files import StudyFiles, is_row
from kdstudy.analysis.tables import series_markdown
from kdstudy.analysis.trend import trend
from kdstudy.analysis.verdict import has_verdict

Value = int | float
WITHOUT_EFFECT = ("name", "about", "smoke", "resources", "watch", "published", "controls", "audit")  # on the gain
MOST_NAMED = 4  # settings in which studies differ


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


def build(out: Path, name: str, setting: str, folders: Mapping[Value, Path], planned: int | None = None) -> bool:
    """Write series.json, series.md and series.html to `results/` in the series' folder `out`.

    name: of the series. folders: the members' folders by the setting's value. planned: how many members there are, with
    those that have not begun. Returns whether any file changed. Raises ValueError where a stage's files do not fit
    together.
    """
    found = results(name, setting, folders, planned)
    folder = out / "results"
    folder.mkdir(parents=True, exist_ok=True)
    contents = {"series.json": as_json(found), "series.md": series_markdown(found), "series.html": series_page(found)}
    return any([write_changed(folder / file, content) for file, content in contents.items()])


def results(name: str, setting: str, folders: Mapping[Value, Path], planned: int | None = None) -> dict[str, Any]:
    """The content of series.json, in the units above; folders and planned as for `build`.

    Members are in the order of their amounts. A folder whose study has another value of the setting, for anyone may run
    a member with other settings, is left out. `slope` is None until two members are confirmed, and `why_not` says why.
    Raises ValueError where a stage's files do not fit together.
    """
    words = WORDS[setting]
    present = {value: StudyFiles(folder) for value, folder in folders.items()}
    studies = {value: study for value, study in present.items() if flat(study.config).get(setting) == value}
    members = sorted((_member(setting, value, study) for value, study in studies.items()),
                     key=lambda member: member["amount"])
    confirmed = [member for member in members if member["distilled"]]
    found, why_not = trend([studies[member["value"]] for member in confirmed],
                           [member["amount"] for member in confirmed])
    content = {"series": name, "setting": setting, "axis": words.axis, "unit": words.unit, "doubled": words.doubled,
               "smoke": any(member["smoke"] for member in members), "members": members, "slope": found,
               "why_not": why_not}
    caveats = [*_unlike(setting, present, studies), *_caveats(content, studies, max(planned or 0, len(folders)))]
    return content | {"sentence": sentence(content), "ends": _ends(content), "caveats": caveats}


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
            "distilled": row("distilled", primary), "gain": outcome["gain"], "verdict": outcome["verdict"],
            "has_verdict": has_verdict(outcome)}


def sentence(content: dict[str, Any]) -> str:
    """Whether the gain changes along the series, in a sentence about the slope alone."""
    if content["smoke"]:
        return "A trial run: the series works; its numbers say nothing."
    found, words = content["slope"], WORDS[content["setting"]]
    if found is None:
        return f"Whether the gain changes along the series is not known: {content['why_not']}."
    studies = sum(1 for member in content["members"] if member["distilled"])
    amount = (f"{show_points(found['mean'])} points with each doubling of {words.doubled} (95 % interval "
              f"{show_bounds(found)}; {studies} studies on {counted(found['seeds'], 'paired seed')}).")
    if found["p"] >= SIGNIFICANT:
        return f"The gain from distillation is not shown to change with the {words.axis}: {amount}"
    return (f"{words.more}, the {'larger' if found['mean'] > 0 else 'smaller'} the gain from distillation on average: "
            f"{amount}")


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


def _unlike(setting: str, present: Mapping[Value, StudyFiles], studies: Mapping[Value, StudyFiles]) -> list[str]:
    """Studies that are left out, and settings in which those that are not differ although they should not."""
    said = [f"{study.folder.name} is left out: the study in it was run with {setting} = "
            f"{flat(study.config).get(setting)}." for value, study in present.items() if value not in studies]
    configs = [flat({name: settings for name, settings in study.config.items() if name not in WITHOUT_EFFECT})
               for study in studies.values()]
    names = dict.fromkeys(name for config in configs for name in config if name != setting)
    if unlike := [name for name in names if any(config.get(name) != configs[0].get(name) for config in configs)]:
        more = f" and {len(unlike) - MOST_NAMED} more" if len(unlike) > MOST_NAMED else ""
        said.append(f"The studies also differ in {', '.join(unlike[:MOST_NAMED])}{more}, so what changes along them "
                    "may be due to that; running the series again gives all of them the same settings.")
    return said


def _caveats(content: dict[str, Any], studies: Mapping[Value, StudyFiles], planned: int) -> list[str]:
    """What a reader must know before believing the sentence. planned: how many studies there will be."""
    if content["smoke"]:
        return []
    found, said = content["slope"], []
    confirmed = [member for member in content["members"] if member["distilled"]]
    if found and len(confirmed) < planned:
        said.append(f"Only {len(confirmed)} of the {planned} studies are confirmed so far; the slope is theirs alone.")
    if guessing := [member["folder"] for member in confirmed if not member["has_verdict"]]:
        said.append(f"No verdict can be drawn from {', '.join(guessing)}: see the report there.")
    if found:
        said.append("The slope is that of the best straight line through the gains over the logarithm of the setting; "
                    "its interval, and no other, is what the sentence rests on. It treats seeds and test images, which "
                    "the studies share, as samples.")
    if found and len({member["distilled"]["seeds"] for member in content["members"] if member["distilled"]}) > 1:
        said.append(f"The slope uses the first {found['seeds']} seeds, which all studies have.")
    if content["setting"] == "teacher.epochs":
        said.append("At each value the slope knows one teacher; how much teachers of other seeds differ is not in it.")
    if any(study.config.get("teacher", {}).get("replicates", 1) > 1 for study in studies.values()):
        said.append("The gains are over all teachers of a study, the slope is that of the first teacher's students.")
    said.append("The interval of each gain holds for that study alone: of many, some leave out zero by chance.")
    if any(isinstance(study.config.get("confirm", {}).get("seeds"), list) for study in studies.values()):
        said.append("The studies were to stop at the first number of seeds that decides, which the slope does not "
                    "take into account.")
    said.append("Each study has a search of its own; what another search would have chosen is in none of the "
                "intervals.")
    return said
