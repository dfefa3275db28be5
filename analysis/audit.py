"""The audit of the usual protocol: what it reports, what each step from there to the study's own comparison changes,
and how often it reports a gain where there is none. For its runs see `kdstudy.stages.audit`.

Protocols compare a baseline with a distilled student on the same seeds. Where they take the best test epoch, intervals
are over the seeds alone (paired t), since a best epoch has no predictions of its own; where they take the last, seeds
and test images are samples (`significance.crossed_interval`), as for the study's answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from kdstudy.analysis.significance import Interval, crossed_interval, pair_share, paired_t_interval
from kdstudy.analysis.stage_names import AUDIT_STAGES
from kdstudy.analysis.study_files import StudyFiles

USUAL_GAIN = 1.34  # points, of the experiment that kdstudy grew out of: see study/README.md
STAGE_OF = {"baseline": "audit_baseline", "distilled": "audit"}
PUBLISHED = ("baseline", "published")
ROWS = {PUBLISHED, *((arm, name) for arm in STAGE_OF for name in ("default", "tuned"))}
SAME = 1e-9  # points; accuracies that differ by less are the same but for rounding


@dataclass(frozen=True)
class Protocol:
    """A way to measure the gain: the configurations of the audit that it compares, and at which epoch."""

    name: str
    baseline: str
    distilled: str
    best_epoch: bool = False


# Each differs from the one before it in one respect.
PROTOCOLS = (
    Protocol("as published", "published", "default", best_epoch=True),
    Protocol("equal batch", "default", "default", best_epoch=True),
    Protocol("last epoch", "default", "default"),
    Protocol("tuned baseline", "tuned", "default"),
    Protocol("both tuned", "tuned", "tuned"),
)


@dataclass(frozen=True)
class Runs:
    """A configuration's runs, seed by seed: right, which test images are right after the last epoch, (seeds, N) bool;
    best, the accuracy at the best test epoch in percent, (seeds,)."""

    right: np.ndarray
    best: np.ndarray


def audit(study: StudyFiles) -> dict[str, Any] | None:
    """results.json's `audit`; None while the audit is not done, or rests on an earlier winner. The confirmation must be
    done.

    seeds, runs, images; batch_size and baseline_batch_size, the latter as published. protocols: of each its name, its
    `gain` and, but for the first, its `change` from the one before it. overstated: the gain of the first minus that of
    the last. Each has mean, low, high (95 %) in points, p, and `over`, what is a sample: `seeds`, or `seeds and
    images`. false_reports: see `false_reports`, for baselines of both batch sizes (`other_batch`), the second of which
    stands for a distilled student, and for two of the same (`same_batch`); gain, in points, and whether the settings
    name it (`own`).
    """
    done = {arm: study.done(stage) for arm, stage in STAGE_OF.items()}
    if None in done.values() or len({tuple(mark["seeds"]) for mark in done.values()}) > 1:
        return None
    rows = {(arm, row["configuration"]): row for arm, mark in done.items() for row in mark["rows"]}
    if any(len(row["runs"]) != len(done[arm]["seeds"]) for (arm, _), row in rows.items()):
        return None
    confirmed = {(row["arm"], row["configuration"]): row["parameters"] for row in study.confirmation["rows"]}
    if not rows.keys() >= ROWS or any(rows[key]["parameters"] != confirmed.get(key) for key in ROWS - {PUBLISHED}):
        return None
    runs = {key: _runs(study, key[0], rows[key]["runs"]) for key in ROWS}
    values = [_values(runs, protocol) for protocol in PROTOCOLS]
    same = [_are_same_runs(rows, *pair) for pair in pairwise(PROTOCOLS)]
    reported, own = reported_gain(study.config)
    best = {name: runs["baseline", name].best for name in ("published", "default")}
    right = runs["baseline", "default"].right
    return {
        "seeds": len(right), "runs": audit_runs(study), "images": right.shape[1],
        "batch_size": rows["baseline", "default"]["parameters"].get("batch_size") or study.config.get("train", {}).get(
            "batch_size"),
        "baseline_batch_size": rows[PUBLISHED]["parameters"].get("batch_size"),
        "protocols": [{"protocol": protocol.name, "gain": _interval(own_values),
                       "change": None if before is None else _change(own_values, before, none)}
                      for protocol, own_values, before, none in zip(PROTOCOLS, values, [None, *values], [False, *same],
                                                                    strict=False)],
        "overstated": _change(values[0], values[-1]),
        "false_reports": {"gain": reported, "own": own,
                          "other_batch": false_reports(best["published"], best["default"], reported),
                          "same_batch": false_reports(best["default"], best["default"], reported)},
    }


def audit_runs(study: StudyFiles) -> int:
    """How many runs of audits have been tested, those of earlier winners among them."""
    trials = study.trials
    return int((trials["stage"].isin(AUDIT_STAGES) & (trials["ended"] == "complete")).sum())


def reported_gain(config: dict[str, Any]) -> tuple[float, bool]:
    """The gain, in points, whose false reports are counted, and whether the settings name it."""
    own = config.get("audit", {}).get("gain") or config.get("published", {}).get("gain")
    return (own, True) if own and own > 0 else (USUAL_GAIN, False)


def false_reports(first: np.ndarray, second: np.ndarray, gain: float) -> dict[str, Any]:
    """How often one run of each of two baselines shows the second to be better by `gain` or more.

    first, second: best test accuracies in percent, (seeds,). All pairs of different seeds count, n (n - 1) of them, as
    if the two had been trained independently. rate, low, high: shares, 0 to 1, with a 95 % interval that respects that
    pairs share seeds (`significance.pair_share`); pairs: how many; mean: the gain of an average pair, in points.
    """
    found = pair_share(second[None, :] - first[:, None] >= gain - SAME)
    different = ~np.eye(len(first), dtype=bool)
    return {"rate": found.mean, "low": found.low, "high": found.high, "pairs": int(different.sum()),
            "mean": float((second[None, :] - first[:, None])[different].mean())}


def _runs(study: StudyFiles, arm: str, numbers: list[int]) -> Runs:
    """Runs that diverged count as guesses at the last epoch, and at the best epoch with what they had reached."""
    stage = STAGE_OF[arm]
    right = np.stack([study.correct(number, stage) for number in numbers])
    curves = study.curves
    if "test_accuracy" not in curves:
        raise ValueError(f"{study.stage(stage)} has no test accuracies in its record; run the audit again")
    own = curves[(curves["stage"] == stage) & (curves["decision"] != "failed")]
    best = own.groupby("trial")["test_accuracy"].max()
    return Runs(right, np.array([100 * max(best.get(number, 0.0), last)
                                 for number, last in zip(numbers, right.mean(1), strict=True)]))


def _values(runs: dict[tuple[str, str], Runs], protocol: Protocol) -> np.ndarray:
    """What a protocol measures, in points: per seed, (seeds,), or per seed and image, (seeds, N)."""
    baseline, distilled = runs["baseline", protocol.baseline], runs["distilled", protocol.distilled]
    if protocol.best_epoch:
        return distilled.best - baseline.best
    return 100 * (distilled.right.astype(float) - baseline.right.astype(float))


def _are_same_runs(rows: dict[tuple[str, str], dict[str, Any]], one: Protocol, other: Protocol) -> bool:
    """Whether two protocols compare the same runs, as where a search chose the default point."""
    return all(rows[arm, getattr(one, arm)]["runs"] == rows[arm, getattr(other, arm)]["runs"] for arm in STAGE_OF)


def _change(values: np.ndarray, before: np.ndarray, same_runs: bool = False) -> dict[str, Any]:
    if values.ndim != before.ndim:
        values, before = (one if one.ndim == 1 else one.mean(1) for one in (values, before))
    return _interval(values - before, same_runs)


def _interval(values: np.ndarray, same_runs: bool = False) -> dict[str, Any]:
    """Between runs that are the same no image differs, whatever the sample. Other runs that agree on all images may
    still differ on others."""
    if values.ndim == 1 or same_runs:
        return _as_dict(paired_t_interval(values if values.ndim == 1 else values.mean(1)), "seeds")
    return _as_dict(crossed_interval(values, unit=100.0), "seeds and images")


def _as_dict(interval: Interval, over: str) -> dict[str, Any]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "p": interval.p, "over": over}
