"""The round between search and confirmation: the best configurations again on fresh seeds, by validation alone.

A search picks the best of many single runs, so its winner is partly the luckiest. Here the few best by the fitted
surface, which knows their neighbours too, and the default point run again; the best mean over the seeds wins.
"""

import statistics
from typing import Any

from kdstudy.search.manager import METRIC
from kdstudy.search.runs import run_key
from kdstudy.store.record import Record, TrialState

STAGES = {"finalists_baseline": "baseline", "finalists": "distill"}  # and the search whose trials they run again


def distinct(ranking: list[int], trials: dict[int, TrialState]) -> list[int]:
    """A ranking in which every configuration stands once, by its first trial: in a space of choices they repeat."""
    first: dict[tuple, int] = {}
    for number in sorted(ranking):
        first.setdefault(tuple(sorted(trials[number].parameters.items())), number)
    by_rank = (first[tuple(sorted(trials[number].parameters.items()))] for number in ranking)
    return list(dict.fromkeys(by_rank))


def candidates(ranking: list[int], count: int) -> list[int]:
    """The first `count` trials of a ranking, the best first; then trial 0, the default point, if it is not of them."""
    chosen = ranking[:count]
    return chosen if 0 in chosen or 0 not in ranking else [*chosen, 0]


def rows(record: Record, runs: dict[int, list[TrialState]]) -> list[dict[str, Any]]:
    """Per candidate: its trial in the search, its parameters, its runs, and their last validation accuracies (0 to 1).

    runs: per trial of the search, its runs here. An accuracy is None where a run has failed or is still to come.
    """
    known = {run_key(trial): trial for trial in record.trials.values()}
    found = []
    for trial, wanted in runs.items():
        own = [known.get(run_key(run)) for run in wanted]
        found.append({
            "trial": trial, "parameters": wanted[0].parameters, "runs": [run and run.number for run in own],
            "accuracies": [run.metric(METRIC) if run and run.state == "complete" else None for run in own]})
    return found


def winner(found: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The row with the best mean accuracy; of equals the default point, else the one ranked first. None if all failed.

    A configuration of which a run failed is out: nobody would want to train with it.
    """
    sound = [row for row in found if None not in row["accuracies"]]
    return max(sound, key=lambda row: (round(mean(row), 9), row["trial"] == 0), default=None)


def mean(row: dict[str, Any]) -> float:
    return statistics.fmean(row["accuracies"])
