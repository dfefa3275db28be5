"""The events of a stage's record, as they count for tables and figures."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Event = dict[str, Any]


def read_events(path: Path) -> list[Event]:
    """The events of a record up to the first line that is not whole; none where there is no record."""
    events: list[Event] = []
    if not path.exists():
        return events
    for line in path.read_bytes().splitlines():
        try:
            events.append(json.loads(line))
        except (ValueError, RecursionError):
            break
    return events


def stops_of(events: list[Event]) -> dict[int, int]:
    """The epoch at which each trial was stopped by a later decision."""
    return {event["trial"]: event["epoch"] for event in events
            if event["event"] == "decision" and event["decision"] == "stop"}


def settled(events: Iterable[Event]) -> list[Event]:
    """The events that count, with each decision in the report that it is about.

    A search that decides in virtual time enters some decisions after the reports. What a trial did after the epoch at
    which it is stopped does not count: see `discarded`.
    """
    events = list(events)
    decisions = {(event["trial"], event["epoch"]): event["decision"] for event in events
                 if event["event"] == "decision"}
    stops = stops_of(events)
    return [_with_decision(event, decisions) for event in events
            if event["event"] != "decision" and not _is_after_stop(event, stops)]


def discarded(events: Iterable[Event]) -> list[Event]:
    """The reports of trials after the epoch at which they were stopped."""
    events = list(events)
    stops = stops_of(events)
    return [event for event in events if event["event"] == "report" and _is_after_stop(event, stops)]


def virtual_order(events: Iterable[Event]) -> list[Event]:
    """The reports of a stage in the order in which they count: in virtual time if it has any, else as they came."""
    events = list(events)
    starts = {event["trial"]: event.get("start") for event in events if event["event"] == "trial"}
    reports = [event for event in events if event["event"] == "report"]
    if None in map(starts.get, (report["trial"] for report in reports)):
        return reports
    return sorted(reports, key=lambda report: (starts[report["trial"]] + report["epoch"], report["trial"]))


def _is_after_stop(event: Event, stops: dict[int, int]) -> bool:
    if event.get("trial") not in stops:
        return False
    if event["event"] == "report":
        return event["epoch"] > stops[event["trial"]] or event["decision"] == "failed"
    return event["event"] == "end"


def _with_decision(event: Event, decisions: dict[tuple[int, int], str]) -> Event:
    if event["event"] != "report" or event["decision"] == "failed":
        return event
    return event | {"decision": decisions.get((event["trial"], event["epoch"]), event["decision"])}
