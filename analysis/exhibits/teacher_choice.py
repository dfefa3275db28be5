"""Which teacher: those that the search chose from, side by side."""

from typing import Any

from kdstudy.analysis.exhibits.effects import show_estimate, show_point
from kdstudy.analysis.exhibits.exhibit import Exhibit
from kdstudy.analysis.figures.alternatives import alternatives
from kdstudy.analysis.number_text import counted, listed
from kdstudy.analysis.study_analysis import StudyAnalysis

COLUMNS = ("teacher", "model", "parameters", "its own accuracy", "trials", "at full budget", "best trial",
           "best of the surface (90 % interval)", "there", "behind the leading one (90 % interval)")


def which_teacher(name: str, analysis: StudyAnalysis) -> Exhibit:
    rows = analysis.sensitivity.get("teachers", [])
    about = (f" The surface is that of the trials with the loss {analysis.sensitivity['loss']}."
             if "loss" in analysis.sensitivity else "")
    said = [] if analysis.outcome["smoke"] or not rows else [("finding", finding(rows))]
    return Exhibit(
        name, "Which teacher?",
        "On the validation images, in the search: exploratory. The best trial of a teacher is one run of one seed, and "
        "the luckiest of many: the more trials a teacher has, the luckier. The dot is what the surface of all trials "
        "predicts with this teacher, everything else tuned for it, over fresh seeds, and its interval allows for that "
        "point being chosen as the best. Each teacher is one trained model: another seed could make it a better or a "
        "worse teacher. Test images are for the winner and the default point alone, so what the search says of the "
        f"other teachers is not confirmed.{about}",
        "No trial of the distillation has reached the full budget yet." if rows else
        "The study chose among no teachers.",
        alternatives(rows, "teacher"), notes=(*said, *(_missing(row) for row in rows if "missing" in row)),
        nav="Which teacher", applies=bool(rows), table=(COLUMNS, *map(_row, rows)))


def finding(rows: list[dict[str, Any]]) -> str:
    """Whether the search shows that one teacher teaches better than others. rows: of `sensitivity.teachers.compared`.
    """
    behind = {row["teacher"]: row["behind"] for row in rows if row.get("behind")}
    leading = next((row["teacher"] for row in rows if "best" in row and row["behind"] is None), None)
    if leading is None or not behind:
        return "Too few trials to compare the teachers."
    worse = [f"{name}, by {gap['points']:.1f} points ({_between(gap)})" for name, gap in behind.items()
             if gap["low"] > 0]
    alike = [f"{name} ({gap['points']:.1f} points behind, {_between(gap)})" for name, gap in behind.items()
             if gap["low"] <= 0]
    said = [f"the search shows that {leading} teaches better than {listed(worse, 'and')}"] if worse else []
    said += [f"no difference is shown between {leading}, which leads, and {listed(alike, 'or')}"] if alike else []
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}. Exploratory: points of validation accuracy, 90 % intervals."


def _between(gap: dict[str, float]) -> str:
    return f"{gap['low']:.1f} to {gap['high']:.1f}".replace("-", "−")


def _missing(row: dict[str, Any]) -> tuple[str, str]:
    return "note", f"Of {row['teacher']} ({counted(row['trials'], 'trial')}) the surface says nothing: {row['missing']}"


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    seen, best, behind = row["best_seen"], row.get("best"), row.get("behind")
    return (row["teacher"], row["model"] or "", f"{row['parameters']:,}" if row["parameters"] else "",
            _percent(row["own"]), str(row["trials"]), str(row["full"]), _percent(seen),
            *((show_estimate(best), show_point(best)) if best else ("", "")),
            f"{behind['points']:.1f} ({_between(behind)})" if behind else "")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} %"
