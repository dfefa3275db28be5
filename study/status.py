"""How far a study is, read from its folder alone."""

import time

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.results import StudyFiles
from study.display import clock
from study.home import Home
from study.record import Record
from study.search import METRIC


def show_status(home: Home, console: Console) -> None:
    """Print a line per stage: done, or trials ended, running and stopped, best value, last sign of life."""
    study, driven = StudyFiles(home.folder), home.is_driven()
    table = Table(box=None, pad_edge=False, show_header=False)
    for name in study.planned:
        table.add_row(f"[bold]{name.replace('_', ' ')}[/bold]", *_describe(study, name, driven))
    console.print(f"[bold]{study.description['name']}[/bold]  {escape(str(home))}", soft_wrap=True)
    console.print(table)
    for failure in _failures(study):
        console.print(failure, style="red", soft_wrap=True, markup=False)


def _describe(study: StudyFiles, name: str, driven: bool) -> tuple[str, str]:
    done, stage = study.done(name), study.stage(name)
    if done is not None:
        return f"[green]✓[/green] {escape(done['outcome'])}", clock(done["seconds"])
    if stage is None or not (stage / "record.jsonl").exists():
        return ("[dim]begun[/dim]" if stage else "[dim]not begun[/dim]"), ""
    record = Record(stage / "record.jsonl", write=False)
    trials = list(record.trials.values())
    counts = {state: sum(trial.state == state for trial in trials)
              for state in ("complete", "stopped", "failed", "running")}
    best = max((trial.metric(METRIC) for trial in trials if trial.metric(METRIC) is not None), default=None)
    if not driven:
        counts["unfinished"] = counts.pop("running")
    parts = [f"{count} {state}" for state, count in counts.items() if count]
    parts += [f"best {100 * best:.1f} %"] if best is not None else []
    if not driven:
        return f"[yellow]‖[/yellow] cut off · {' · '.join(parts)} · `kdstudy run` goes on", clock(record.seconds)
    silence = max(0.0, time.time() - record.last_time)
    return f"[cyan]…[/cyan] {' · '.join(parts)} · last report {clock(silence)} ago", clock(record.seconds)


def _failures(study: StudyFiles) -> list[str]:
    failed = study.trials[study.trials["ended"] == "failed"]
    return [f"{row.stage} trial {row.trial} failed: {row.reason}" for row in failed.itertuples()]
