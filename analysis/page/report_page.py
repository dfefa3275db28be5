"""One study as an HTML page: verdict, cards, table, figures, all trials, methods, settings."""

import html
from typing import Any

from kdstudy.analysis.exhibits.catalogue import exhibits
from kdstudy.analysis.exhibits.exhibit import Exhibit
from kdstudy.analysis.page.cards import cards_html
from kdstudy.analysis.page.document import document, own_file, plot, sections_of
from kdstudy.analysis.page.results_table import results_table
from kdstudy.analysis.page.trials_table import trials_section
from kdstudy.analysis.study_analysis import StudyAnalysis
from kdstudy.analysis.study_files import StudyFiles


def report_page(analysis: StudyAnalysis) -> str:
    """The page, complete in one string."""
    study, outcome = analysis.study, analysis.outcome
    name, about = html.escape(outcome["study"]), html.escape(study.config.get("about", ""))
    gain, *others = exhibits(analysis)
    body = [
        f"<header><p class=kind>Hyperparameter study of knowledge distillation</p><h1>{name}</h1>"
        f"<p>{about}</p></header>", _contents(others), _verdict(analysis, outcome, gain),
        f"<section id=s-results><h2>Results</h2>{results_table(outcome)}</section>",
        *sections_of(others), trials_section(study),
        f"<section id=s-methods><h2>Methods and caveats</h2>{own_file('methods.html')}</section>",
        f"<section><h2>Settings</h2><details><summary>study.toml</summary><pre>{_settings(study)}</pre></details></section>",
    ]
    return document(f"{name}: does distillation help?", body, [gain, *others])


def _verdict(analysis: StudyAnalysis, outcome: dict[str, Any], gain: Exhibit) -> str:
    return (f"<section class=verdict><p class=headline>{html.escape(outcome['verdict'])}</p>\n"
            + (f"<p class=note>{gain.caption}</p>{plot(gain)}" if gain.figure else "")
            + f"\n{cards_html(analysis)}\n<p class=scope>{html.escape(outcome['scope'])}</p>"
            + f"{_progress(analysis.study)}</section>")


def _contents(exhibits: list[Exhibit]) -> str:
    shown = [("s-results", "Results"), *((f"s-{exhibit.name}", exhibit.nav) for exhibit in exhibits
                                         if exhibit.nav and exhibit.figure),
             ("s-trials", "All trials"), ("s-methods", "Methods")]
    return "<nav>" + "".join(f'<a href="#{target}">{html.escape(name)}</a>' for target, name in shown) + "</nav>"


def _progress(study: StudyFiles) -> str:
    """How far the stages are, in one line; nothing once all are done."""
    states = {stage: "done" if study.done(stage) else "under way" if study.stage(stage) else "to come"
              for stage in study.planned}
    if set(states.values()) == {"done"}:
        return ""
    return "<p class=progress>" + " · ".join(
        f"{stage.replace('_', ' ')}: {state}" for stage, state in states.items()) + "</p>"


def _settings(study: StudyFiles) -> str:
    return html.escape((study.folder / "study.toml").read_text(encoding="utf-8"))
