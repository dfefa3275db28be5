"""`kdstudy plan` of a series: what each member costs, and the sum, in which what members share counts once."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kdstudy.errors import UserError
from kdstudy.planning import preflight
from kdstudy.planning.estimate import StagePlan, make_plan
from kdstudy.planning.forecast import Forecast, forecast
from kdstudy.planning.plan import (
    ASSUMED_TFLOPS,
    END_SECONDS,
    START_SECONDS,
    expected_epochs,
    machine_for,
    show_use,
)
from kdstudy.series.folder import SeriesFolder, StoredMember
from kdstudy.stages.order import priority
from kdstudy.store import files
from kdstudy.study import Study
from kdstudy.tune.cluster import Share
from kdstudy.watch.console import print_prose
from kdstudy.watch.display import clock


@dataclass(frozen=True)
class MemberPlan:
    """The plan of a member. images: labelled ones of the student. plans: of all stages. shared: the names of those
    that another member has run by then, or will have."""

    member: StoredMember
    images: int
    plans: list[StagePlan]
    shared: frozenset[str]

    @property
    def own(self) -> list[StagePlan]:
        """The stages that are left to run, in order of priority."""
        left = [plan for plan in self.plans if not plan.done and plan.name not in self.shared]
        return sorted(left, key=lambda plan: priority(plan.name))

    @property
    def is_timed(self) -> bool:
        return all(plan.seconds is not None for plan in self.own)

    def forecast(self, slots: int) -> Forecast:
        """Without the start of Ray, which the members share."""
        names = {plan.name for plan in self.own}
        works = [replace(plan.work(), needs=tuple(need for need in plan.needs if need in names)) for plan in self.own]
        return forecast(works, slots, self.member.member.config.search.reduction_factor)


def show_plan(series: SeriesFolder, console: Console, measure: bool = False, gpus: int | None = None,
              tflops: float = ASSUMED_TFLOPS, address: str | None = None) -> list[MemberPlan]:
    """Print the plan of each member and of all; see `kdstudy.planning.plan.show_plan`. Raises UserError."""
    plans: list[MemberPlan] = []
    machine, described = None, ""
    known = _finished_folders(series)
    for member in series.members:
        study = member.study()
        study.storage.refresh(everything=True)
        try:
            preflight.check_settings(study, address, machine=not gpus)
        except UserError as error:
            raise UserError(f"{member.name} of the series: {error}") from None
        if machine is None:
            machine, described = machine_for(study, console, address, gpus)
        stages = make_plan(study, measure and not gpus, tflops * 1e12 if gpus else None, only_gpu=bool(gpus))
        folders = _folders(study)
        shared = frozenset(name for name, folder in folders.items() if folder in known)
        plans.append(MemberPlan(member, len(study.context.splits.student_train), stages, shared))
        known |= set(folders.values())
    about = escape(series.series.about)
    print_prose(console, f"[bold]{series.series.name}[/bold]  {about}\n", markup=True)
    print_prose(console, f"machine   {described}")
    print_prose(console, f"storage   {series.storage}\n")
    console.print(_table(plans, machine))
    _show_sum(console, plans, machine)
    if gpus:
        print_prose(console, f"An estimate, not measured: assumes that a GPU sustains {tflops:g} TFLOP/s on these "
                             "models (--tflops), where no epochs have been recorded.")
    return plans


def _finished_folders(series: SeriesFolder) -> set[str]:
    """The names of the stage folders that any member, or a folder beside them, has finished."""
    found = {folder for member in series.members for folder in member.storage.folder.parent.glob("*/*-*/done.json")}
    return {mark.parent.name for mark in found if files.read_json(mark)}


def _folders(study: Study) -> dict[str, str]:
    """The name of each stage's folder, as far as it is known: what depends on a teacher to be trained is not, but no
    other member has that either."""
    known = {name: stage.known_folder for name, stage in study.stages.items()}
    return {name: folder.path.name for name, folder in known.items() if folder}


def _table(plans: list[MemberPlan], machine: Share) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("member", "images", "runs", "epochs expected", "TFLOP", "takes", ""):
        table.add_column(title, justify="left" if title in ("member", "") else "right")
    for one in plans:
        whole = one.forecast(machine.concurrent)
        runs, epochs, flop = _work(one, whole)
        notes = [f"shared: {', '.join(name.replace('_', ' ') for name in sorted(one.shared, key=priority))}"
                 ] if one.shared - {plan.name for plan in one.plans if plan.done} else []
        if all(plan.done for plan in one.plans):
            notes = ["done"]
        table.add_row(one.member.name, f"{one.images:,}", str(runs), f"{epochs:,.0f}", f"{flop / 1e12:,.3g}",
                      clock(whole.wall + END_SECONDS) if one.own and one.is_timed else "", "; ".join(notes))
    return table


def _work(one: MemberPlan, whole: Forecast) -> tuple[int, float, float]:
    """Runs, expected epochs and operations that a member has left."""
    epochs = {plan.name: expected_epochs(plan, whole) for plan in one.own}
    return (sum(plan.load.runs for plan in one.own), sum(epochs.values()),
            sum(plan.flop(epochs[plan.name]) for plan in one.own))


def _show_sum(console: Console, plans: list[MemberPlan], machine: Share) -> None:
    """Print what all members together have left to do."""
    left = [one for one in plans if one.own]
    if not left:
        console.print("\nleft to do: nothing")
        return
    wholes = [one.forecast(machine.concurrent) for one in left]
    flop = sum(_work(one, whole)[2] for one, whole in zip(left, wholes, strict=True))
    runs = sum(_work(one, whole)[0] for one, whole in zip(left, wholes, strict=True))
    console.print(f"\nleft to do: {runs:,} runs, {flop / 1e12:,.3g} TFLOP")
    if not all(one.is_timed for one in left):
        console.print("\nTimes appear once epochs have been recorded, or with --measure, which times a few steps here.")
        return
    wall = START_SECONDS + sum(whole.wall + END_SECONDS for whole in wholes)
    print_prose(console, f"one after the other: {show_use(wall, sum(whole.used for whole in wholes), machine)}")
