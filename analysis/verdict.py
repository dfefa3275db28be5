"""The verdict and its scope: what a study found, and for what that holds.

results.json, results.md and the README's blocks hold these sentences, so a change of a word changes committed files.
"""

from typing import Any

from kdstudy.analysis.audit import audit_runs
from kdstudy.analysis.cautions import all_guess, guessing
from kdstudy.analysis.controls import NAMES, current_runs, stage_of
from kdstudy.analysis.gain import SIGNIFICANT
from kdstudy.analysis.learned import FailedRun, in_comparison, which_failed
from kdstudy.analysis.number_text import (
    counted,
    listed,
    number_word,
    ordinal,
    show_bounds,
    show_interval,
    show_points,
)
from kdstudy.analysis.stage_names import FURTHER_TEACHERS
from kdstudy.analysis.study_files import (
    ARMS,
    CONFIRM_STAGES,
    SEARCH_STAGES,
    StudyFiles,
    find_row,
)
from kdstudy.analysis.teachers import crossed_runs
from kdstudy.analysis.teachers import stage_of as students_of

LONGEST_REASON = 150  # characters
SMOKE_VERDICT = "A trial run: the study works; its numbers say nothing."


def verdict(outcome: dict[str, Any], figures: bool = True) -> str:
    """Whether distillation helps, in a sentence, and what a reader must know before believing it, in another.

    figures: whether to give the gain and its interval, which a table beside the sentence may give already.
    """
    if find_row(outcome, "distilled", "tuned") is None:
        return "No verdict yet: the confirmation has not been run."
    if outcome["smoke"]:
        return SMOKE_VERDICT
    if outcome["gain"] is None:
        return "No verdict: one seed allows no interval; set confirm.seeds to at least 2, better 5."
    if all_guess(outcome):
        return (f"No verdict: no student does better than {guessing(outcome)}. "
                "The study runs, but says nothing about distillation.")
    cautions = f" Caution: {'; '.join(outcome['cautions'])}." if outcome["cautions"] else ""
    return f"{_finding(outcome, figures)}.{cautions}"


def has_verdict(outcome: dict[str, Any]) -> bool:
    """Whether anything may be concluded from the gain."""
    return outcome["gain"] is not None and not outcome["smoke"] and not all_guess(outcome)


def _finding(outcome: dict[str, Any], with_figures: bool) -> str:
    gain, others = outcome["gain"], _others_that_help(outcome)
    measured = f"{show_interval(gain)} over the tuned baseline on {_sampled(gain)}"
    figures = f": {measured}" if with_figures else ""
    transfer = "few-label transfer: " if with_figures else ""
    included = _few_labels(outcome, f"{transfer}the gain includes knowledge of")
    over_controls = controls_clause(outcome, begins="; ", with_open=False)  # what is open then says nothing
    if gain["p"] >= SIGNIFICANT:
        what = f"for the {outcome['primary']} configuration" if others else f"from distillation{_by_whom(outcome)}"
        few = included if others else _few_labels(outcome, f"{transfer}the teacher saw")
        zero = ", which includes zero" if with_figures else ""
        return f"No gain {what} shown{figures}{zero}{others}{over_controls}{few}"
    if gain["mean"] < 0:
        what = _by_whom(outcome) + (f" in the {outcome['primary']} configuration" if others else "")
        return f"Distillation{what} hurts{figures}{others}{over_controls}{included if others else ''}"
    return f"Distillation{_by_whom(outcome)} helps{figures}{controls_clause(outcome, begins=', ')}{included}"


def _by_whom(outcome: dict[str, Any]) -> str:
    """Which teacher the answer is about, where the study chose among several."""
    return f" by the teacher “{outcome['teacher']}”" if "teacher" in outcome else ""


def _sampled(gain: dict[str, Any]) -> str:
    seeds = counted(gain["seeds"], "paired seed")
    return f"{seeds}, each with {counted(gain['teachers'], 'teacher')}" if "teachers" in gain else seeds


def _others_that_help(outcome: dict[str, Any]) -> str:
    """The other distilled rows that show a gain."""
    shown = [f"“{row['configuration']}”, {show_interval(row['gain'])}" for row in outcome["rows"]
             if row["arm"] == "distilled" and row["configuration"] != outcome["primary"] and row["gain"]
             and row["gain"]["p"] < SIGNIFICANT and row["gain"]["mean"] > 0]
    return f"; a gain is shown for {' and for '.join(shown)}" if shown else ""


def controls_clause(outcome: dict[str, Any], begins: str, with_open: bool = True) -> str:
    """What the distilled student is better and worse than among the controls, to follow the gain over the baseline.

    with_open: whether to name those that it is neither shown to beat nor to be beaten by."""
    rows = [row for row in outcome.get("controls", []) if row["gain"]]
    shown = [row for row in rows if row["gain"]["p"] < SIGNIFICANT]
    beaten = sorted((row for row in shown if row["gain"]["mean"] > 0), key=lambda row: -row["test_mean"])
    worse = [row for row in shown if row["gain"]["mean"] < 0]
    open_ones = [NAMES[row["control"]] for row in rows if row not in shown]
    text = ""
    if beaten:
        strongest = beaten[0]
        text = f"{begins}{_briefly(strongest['gain'])} over {NAMES[strongest['control']]}"
        text += f", the strongest of {number_word(len(beaten))} controls that it beats" if len(beaten) > 1 else ""
    text += "".join(f"; worse than {NAMES[row['control']]}: {_briefly(row['gain'])}" for row in worse)
    return text + (f"; not shown over {listed(open_ones, 'or')}" if open_ones and with_open else "")


def _briefly(gain: dict[str, Any]) -> str:
    return f"{show_points(gain['mean'])} ({show_bounds(gain)})"


def _few_labels(outcome: dict[str, Any], begins: str) -> str:
    unseen = outcome["data"]["train"] - outcome["data"]["student_train"]
    saw = "saw only without labels" if outcome["data"].get("unlabelled") else "never saw"
    return f"; {begins} {unseen} images that the student {saw}" if unseen else ""


def scope(study: StudyFiles, outcome: dict[str, Any], failed: list[FailedRun]) -> str:
    """For what the verdict holds, and what else a reader must know to quote it. failed: as for the cautions."""
    confirm = study.confirmation
    if confirm is None:
        return "Scope: the confirmation on fresh seeds is still to come."
    teachers = len(outcome.get("teachers", []))
    whose = f"{number_word(teachers)} teachers that differ in their seed alone" if teachers else _this_teacher(study)
    text = (f"Scope: {whose}, this split, this search; {outcome['data']['test']} test images, "
            f"{counted(len(confirm['rows'][0]['runs']), 'fresh seed')}, last epoch, {_tests(study)}{_audit(study)}.")
    on_gain = ([_samples(outcome["gain"]), _look(outcome), _family(outcome), _of_controls(outcome),
                _better_default(outcome)]
               if has_verdict(outcome) else [])
    points = [_failed_points(study, arm) for arm in SEARCH_STAGES]
    return " ".join(filter(None, [text, _duplicates(outcome), *_on_images(outcome), _given_teacher(outcome), *points,
                                  _failed_elsewhere(study, failed), _mismatches(study), *on_gain]))


def _this_teacher(study: StudyFiles) -> str:
    if not study.teacher_choice:
        return "this teacher"
    if study.primary == "default":
        return f"the default point’s teacher, “{study.teacher}”"
    return f"the teacher “{study.teacher}”, which the search chose among {number_word(len(study.teacher_choice))}"


def _tests(study: StudyFiles) -> str:
    """How often test images were read: runs of earlier winners and of fewer or more seeds count too."""
    stages = (*CONFIRM_STAGES, *map(stage_of, NAMES), *map(students_of, FURTHER_TEACHERS))
    trials = study.trials[study.trials["stage"].isin(stages) & (study.trials["ended"] == "complete")]
    shown = {(row["stage"], run) for row in study.confirmation["rows"] for run in row["runs"]}
    shown |= crossed_runs(study)
    shown |= {(stage_of(kind), run) for kind, runs in current_runs(study).items() for run in runs}
    tested = set(zip(trials["stage"], trials["trial"], strict=True)) | shown
    if tested == shown:
        return "each run tested once"
    return f"{len(tested)} runs tested, {len(shown)} in this table"


def _audit(study: StudyFiles) -> str:
    """That an audit's runs have been tested too, though not to answer the study's question."""
    runs = audit_runs(study)
    return (f"; the audit's {runs} runs, on seeds of their own, were tested after every epoch, but are no look at this "
            "answer and chose nothing") if runs else ""


def _duplicates(outcome: dict[str, Any]) -> str:
    shared = (outcome["data"].get("duplicates") or {}).get("train_test", 0)
    if not shared or outcome["data"].get("dropped"):
        return ""
    return f"{shared} of the training images {'is' if shared == 1 else 'are'} among the test images too."


def _on_images(outcome: dict[str, Any]) -> list[str]:
    """What must be known about how the images were read and split."""
    return [f"{note[:1].upper()}{note[1:]}." for note in outcome["data"].get("notes") or []]


def _given_teacher(outcome: dict[str, Any]) -> str:
    teacher = next((row for row in outcome["rows"] if row["arm"] == "teacher"), None)
    if teacher is None or teacher["trials"]:
        return ""
    return "The teacher was given: this study cannot tell whether it has seen the test images."


def _mismatches(study: StudyFiles) -> str:
    """Where training that an interruption cut off came out differently the second time."""
    found = [f"{stage} trial {event['trial']}, epoch {event['epoch']}" for stage, events in study.events.items()
             for event in events if event["event"] == "mismatch"]
    if not found:
        return ""
    return (f"{counted(len(found), 'epoch')} came out differently when an interrupted trial was trained again (first: "
            f"{found[0]}); the first result counts.")


def _failed_points(study: StudyFiles, arm: str) -> str:
    """Which of the points that a search always tries failed: without them it chose among fewer."""
    search = study.trials[(study.trials["stage"] == arm) & study.trials["origin"].isin(["default", "sobol"])]
    failed = search[search["ended"] == "failed"]
    if failed.empty:
        return ""
    reason, others = failed["reason"].iloc[0] or "no reason given", int((failed["origin"] == "sobol").sum())
    reason = reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON].rstrip()}…"
    which = ["the default point"] if others < len(failed) else []
    which += [f"{others} of the {int((search['origin'] == 'sobol').sum())} Sobol points"] if others else []
    first = f"the first: {reason}" if len(failed) > 1 else reason
    text = f"{' and '.join(which)} of the {ARMS[arm]} search failed ({first}); the search chose among the others."
    return text[0].upper() + text[1:]


def _failed_elsewhere(study: StudyFiles, failed: list[FailedRun]) -> str:
    """Runs that failed to learn in rows that the verdict is not about."""
    concerned = in_comparison(study, failed)
    others = [run for run in failed if run not in concerned]
    if not others:
        return ""
    return (f"Outside this comparison {counted(len(others), 'run')} failed to learn ({which_failed(others)}), which "
            "the means of these rows include.")


def _samples(gain: dict[str, Any]) -> str:
    """What varies, what the interval covers, and how it compares with the one for these very images or teachers."""
    if "teachers" in gain:
        return ("The gain varies with the teacher, the training seed and the test images: the interval is for the "
                f"average over new ones of all three, from {gain['teachers']}, {gain['seeds']} and "
                f"{gain['images']:,} here; for these very teachers it is {show_bounds(gain['these_teachers'])}. All "
                "other comparisons are those of the first teacher.")
    bounds = [show_points(interval[end]) for interval in (gain, gain["seeds_only"]) for end in ("low", "high")]
    alone = "the same" if bounds[:2] == bounds[2:] else f"{bounds[2]} to {bounds[3]}"
    return ("The gain varies with the training seed (initial weights, image order, augmentation) and with the test "
            f"images: the interval is for the average over new seeds and new test images, from {gain['seeds']} and "
            f"{gain['images']:,} here; for new seeds and these very images it is {alone}.")


def _look(outcome: dict[str, Any]) -> str:
    """Which look at the test images this is, and what it does to the interval, where there are several."""
    look = outcome.get("look")
    if look is None:
        return ""
    shown, level = look["shown"], f"that of a single look at {100 * look['level']:.2g} %"
    earlier = f" An earlier look, at {shown['seeds']} seeds, had found {show_interval(shown)}." if shown else ""
    if not look["planned"]:
        return (f"Look {look['number']} at these test images was not planned: its interval is wider, {level}, because "
                f"the plan has used up the 5 %.{earlier}")
    plan, place = look["plan"], look["plan"].index(look["seeds"])
    of = f"the {ordinal(place + 1)} of {number_word(len(plan))} planned looks, {look['seeds']} seeds"
    if len(plan) == 1:
        return f"This is the planned look, {look['seeds']} seeds.{earlier}"
    reason = _why_stopped(outcome["gain"], look)
    return (f"{f'Stopped at {of}, {reason}' if reason else f'At {of}'}. All planned looks ({_listed(plan)} seeds) "
            f"share 5 %: this interval is {level}.{earlier}")


def _why_stopped(gain: dict[str, Any], look: dict[str, Any]) -> str:
    """Why no further look of the plan follows; empty if one does."""
    if gain["p"] < SIGNIFICANT:
        return "because its interval leaves out zero"
    if look["gain"] is not None and gain["high"] < look["gain"]:
        return f"because its interval lies below confirm.gain = {look['gain']:g} points"
    return "the last" if look["seeds"] == look["plan"][-1] else ""


def _listed(numbers: list[int]) -> str:
    return listed([str(number) for number in numbers], "and")


def _family(outcome: dict[str, Any]) -> str:
    """What the intervals of the other rows mean."""
    others = max((row["gain"]["comparisons"] for row in outcome["rows"] if row["gain"]), default=1)
    if others < 2:
        return ""
    return (f"The comparison of distilled {outcome['primary']} with the tuned baseline was chosen beforehand; the "
            f"intervals of the other {others} comparisons with it hold together with 95 %.")


def _of_controls(outcome: dict[str, Any]) -> str:
    """What the intervals over the controls mean."""
    gains = [row["gain"] for row in outcome.get("controls", []) if row["gain"]]
    if len(gains) < 2:
        return ""
    return (f"The {number_word(len(gains))} comparisons with controls share 5 % (Holm): each "
            "interval leaves out zero exactly where that procedure shows a difference.")


def _better_default(outcome: dict[str, Any]) -> str:
    """A note where the baseline did better at its default point than at the point that its search chose."""
    default, untuned = outcome["gain_over_default_baseline"], find_row(outcome, "baseline", "default")
    if not default or not untuned["gain"] or untuned["gain"]["mean"] <= 0:
        return ""
    text = "On the fresh seeds the baseline did better at its default point than at the point that the search chose"
    if show_interval(default) in outcome["verdict"]:
        return f"{text}."
    return f"{text}; over the default baseline the gain is {show_interval(default)}."
