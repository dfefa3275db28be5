"""What would go wrong on this machine or cluster, found before the first trial and said in one line with the remedy.

What a node of a cluster is asked runs there, where this package may be missing or another: those functions import all
they need, and travel as they are.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import importlib.metadata
import importlib.util
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.cluster import Node, Share, cluster_nodes, cluster_share, local_share, trials_on
from study.config import own_functions
from study.display import show_bytes
from study.errors import MissingTeacherError, UserError
from study.home import Home
from trainables.functions import check as check_function
from trainables.messages import one_line
from trainables.paths import remove_objects

if TYPE_CHECKING:
    from study.stages import Study

OURS = ("study", "trainables")  # what workers run of this package
VERSIONED = ("ray", "torch", "timm", "numpy")
NEEDED = ("analysis", "safetensors", "pyarrow", "pydantic", "fsspec")
NODE_SECONDS = 120.0  # for a node to answer; the first to import a model of one's own may take long
NOT_THERE = "not there"
# A checkpoint: the weights and the two moments that the usual optimizers keep of each.
COPIES_IN_CHECKPOINT = 3
BYTES_PER_WEIGHT = 4
OTHER_BYTES = 16 * 2**20  # records, tables, the page: 11 MiB with 500 trials


def check_here(study: Study) -> Share:
    """This machine, without Ray: whether a trial fits, and the study's place can be written and has room.

    Returns what a trial gets. Raises UserError.
    """
    given = local_share(study.config.resources)
    room = room_needed(study, given)
    if any(room.parts.values()):  # a study that is done may lie where nothing can be written
        check_place(study.home)
    _check_place_room(study, room)
    _check_temporary_room("this machine", given.concurrent, *_temporary(), room)
    return given


def check_place(home: Home) -> None:
    """Raises UserError where the study's place cannot be written."""
    with _marked(_place(home)):
        pass


def check_cluster(study: Study) -> Share:
    """The connected cluster: whether a trial fits, then, on every node that takes one, that its packages are those of
    this machine, that it shares the study's place, and that there is room.

    Returns what a trial gets. Raises UserError.
    """
    given = cluster_share(study.config.resources)
    for problem in problems_of(study, given, cluster_nodes()).values():
        raise UserError(problem)
    _check_place_room(study, room_needed(study, given))
    return given


def problems_of(study: Study, given: Share, nodes: list[Node]) -> dict[Node, str]:
    """What keeps trials from running on those of these nodes that have room for them, where there is something.

    Raises UserError where the study's place cannot be written.
    """
    trials = {node: count for node in nodes if (count := trials_on((node.cpus, node.gpus), given.cpus, given.gpus))}
    place, functions = _place(study.home), own_functions(study.config)
    for name in functions.values():
        check_function(name)
    with _marked(place) as mark:
        answers = _ask(list(trials), place, mark, functions)
    here, problems = environment(functions), {}
    for node, answer in answers.items():
        try:
            if "silent" in answer:
                raise UserError(answer["silent"])
            check_environment(node, answer["environment"], here, functions)
            _check_storage(node, answer, study.home)
        except UserError as error:
            problems[node] = str(error)
    sound = [node for node in trials if node not in problems]
    room = room_needed(study, given) if sound else None  # it builds the models, which may be what is missing
    for node in sound:
        try:
            most = min(study.config.resources.concurrent or trials[node], trials[node])
            _check_temporary_room(f"node {node.name}", most, *answers[node]["temporary"], room)
        except UserError as error:
            problems[node] = str(error)
    return problems


# -- asking every node ------------------------------------------------------------------------------------------------


def _ask(nodes: list[Node], place: str, mark: str, functions: dict[str, str]) -> dict[Node, dict[str, Any]]:
    """What `_answer` says on each node, and whether what it has written was `seen` here, or why it is `silent`; all are
    asked at the same time."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {}
    with _travels_as_it_is():
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node.id, soft=False)
            task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_answer)
            asked[node] = task.remote(place, mark, _own(mark, node), functions)
    _, silent = ray.wait(list(asked.values()), num_returns=len(asked), timeout=NODE_SECONDS)
    seen = {node: _taken_away(place, _own(mark, node)) for node in nodes}
    return {node: {"silent": f"node {node.name} did not answer within {NODE_SECONDS:g} s; see what keeps it busy, or "
                             "take it out of the cluster"} if task in silent
            else _answer_of(task, node) | {"seen": seen[node]} for node, task in asked.items()}


def _answer_of(task: Any, node: Node) -> dict[str, Any]:
    import ray

    try:
        return ray.get(task)
    except ray.exceptions.RayError as error:
        return {"silent": f"node {node.name} cannot run a task: {one_line(error)}; mend it, or take it out of the "
                          "cluster"}


@contextlib.contextmanager
def _travels_as_it_is() -> Iterator[None]:
    """What is sent to a node brings this module's functions along instead of naming them."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def _own(mark: str, node: Node) -> str:
    """The name of the file that a node leaves beside the driver's."""
    return f"{mark}-{node.id}"


def _answer(place: str, mark: str, own: str, functions: dict[str, str]) -> dict[str, Any]:
    """A Ray task: what a node says of itself."""
    return {"environment": environment(functions), "storage": _use_storage(place, mark, own),
            "temporary": _temporary()}


def _temporary() -> tuple[str, int]:
    """The folder through which checkpoints pass, and the bytes that are free in it."""
    return tempfile.gettempdir(), _free(tempfile.gettempdir())


def _free(folder: str) -> int:
    return shutil.disk_usage(folder).free


# -- packages ---------------------------------------------------------------------------------------------------------


def environment(functions: dict[str, str]) -> dict[str, str]:
    """What decides how a process here trains: versions, and digests of source files. Nothing large is imported."""
    found = {"Python": ".".join(map(str, sys.version_info[:2])), "kdstudy": _digest(OURS)}
    for name in VERSIONED:
        found[name] = _version(name)
    for name in NEEDED:
        found[name] = "there" if importlib.util.find_spec(name) else NOT_THERE
    for setting, function in functions.items():
        found[setting] = _imported(function)
    return found


def _version(name: str) -> str:
    """Without the build's own tag: 2.9.1 for 2.9.1+cpu."""
    if importlib.util.find_spec(name) is None:
        return NOT_THERE
    try:
        return importlib.metadata.version(name).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _digest(packages: tuple[str, ...]) -> str:
    digest = hashlib.blake2b(digest_size=5)
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            return NOT_THERE
        for file in sorted(Path(spec.submodule_search_locations[0]).glob("*.py")):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _imported(function: str) -> str:
    """A digest of the file that a function of the user's own comes from, or why it cannot be imported."""
    module, _, name = function.partition(":")
    try:
        defined_in = sys.modules[getattr(importlib.import_module(module), name).__module__]
        return hashlib.blake2b(Path(defined_in.__file__).read_bytes(), digest_size=5).hexdigest()
    except (Exception, SystemExit) as error:
        return f"{NOT_THERE}: {' '.join(str(error).split())[:200]}"


def check_environment(node: Node, there: dict[str, str], here: dict[str, str], functions: dict[str, str]) -> None:
    """Compare what `environment` says on a node and on this machine. Raises UserError at the first difference."""
    for name in here:
        if there[name] == here[name]:
            continue
        if name in functions:
            what = (f"cannot be imported on node {node.name} ({there[name].removeprefix(f'{NOT_THERE}: ')})"
                    if there[name].startswith(NOT_THERE) else f"is another on node {node.name} than here")
            raise UserError(f"{name} = {functions[name]!r} {what}; put the same files there, where Python finds them")
        if name == "kdstudy":
            what = "has no kdstudy" if there[name] == NOT_THERE else "has another kdstudy than this machine"
            raise UserError(f"node {node.name} {what}; install this one there too (pip install, from the same source)")
        if there[name] == NOT_THERE:
            wanted = name if here[name] == "there" else f"{name}=={here[name]}"
            raise UserError(f"node {node.name} has no {name}; there: pip install {wanted}")
        remedy = "install the same on both" if name == "Python" else f"there: pip install {name}=={here[name]}"
        raise UserError(f"node {node.name} has {name} {there[name]}, this machine {here[name]}; {remedy}")


# -- storage ----------------------------------------------------------------------------------------------------------


def _place(home: Home) -> str:
    """Where a probe may write without leaving a trace: the study's URI, or the nearest folder that there is."""
    if home.uri is not None:
        return home.uri
    folder = home.folder.absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        raise UserError(f"{nearest} is a file, so no study can live in {folder}; choose another place with --dir")
    return str(nearest)


@contextlib.contextmanager
def _marked(place: str) -> Iterator[str]:
    """A file in `place`, for a while, whose name nobody can guess and which holds its name. Raises UserError."""
    import fsspec

    mark = f".kdstudy-probe-{secrets.token_hex(8)}"
    try:
        files, root = fsspec.core.url_to_fs(place, use_listings_cache=False)
        files.pipe_file(f"{root}/{mark}", mark.encode())
    except Exception as error:
        remedy = "make room there" if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) else (
            "make it writable")
        raise UserError(f"cannot write to {place} ({_reason(error)}); {remedy}, or choose another place with --dir"
                        ) from None
    try:
        yield mark
    finally:
        with contextlib.suppress(Exception):
            remove_objects(files, root, [mark])


def _use_storage(place: str, mark: str, own: str) -> str | None:
    """Look for the driver's mark and leave one of our own; what went wrong, or None."""
    try:
        import fsspec

        files, root = fsspec.core.url_to_fs(place, use_listings_cache=False)
        if files.cat_file(f"{root}/{mark}") != mark.encode():
            return NOT_THERE
    except (FileNotFoundError, NotADirectoryError):
        return NOT_THERE
    except Exception as error:
        return f"read {place} ({_reason(error)})"
    try:
        files.pipe_file(f"{root}/{own}", own.encode())
    except Exception as error:
        return f"write to {place} ({_reason(error)})"
    return None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__


def _check_storage(node: Node, answer: dict[str, Any], home: Home) -> None:
    problem = answer["storage"]
    if problem not in (None, NOT_THERE):
        raise UserError(f"node {node.name} cannot {problem}; mend that, or choose another place with --dir")
    if problem or not answer["seen"]:
        remedy = ("a folder on a file system that all nodes share, or an object store (s3://BUCKET/studies/NAME)"
                  if home.uri is None else "one that all nodes reach with the same endpoint and rights")
        raise UserError(f"{home} is not shared with node {node.name}; choose with --dir {remedy}")


def _taken_away(place: str, name: str) -> bool:
    """Remove what a node has written; whether it was to be seen here."""
    import fsspec

    files, root = fsspec.core.url_to_fs(place, use_listings_cache=False)
    try:
        seen = files.cat_file(f"{root}/{name}") == name.encode()
    except Exception:
        return False
    with contextlib.suppress(Exception):
        remove_objects(files, root, [name])
    return seen


# -- room -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Room:
    """What a study is still going to write, estimated.

    parts: bytes, by what they are for and the setting that makes them fewer. checkpoint: bytes of one of the largest
    model that is still trained.
    """

    parts: dict[str, int]
    checkpoint: int


def room_needed(study: Study, given: Share) -> Room:
    """An estimate from the sizes of the models and the numbers of runs; what is there already does not count."""
    from study.plan import make_plan, parameter_count, teacher_models
    from study.stages import PHASES
    from study.work import CONFIRMATIONS

    runs = {plan.name: plan.runs for plan in make_plan(study) if not plan.done}
    student = BYTES_PER_WEIGHT * parameter_count(study.config.student, study)
    teacher = BYTES_PER_WEIGHT * sum(parameter_count(settings, study) for settings in teacher_models(study))
    checkpoints = {name: COPIES_IN_CHECKPOINT * (teacher if name == "teacher" else student)
                   for name, count in runs.items() if count and name != "teacher_logits"}
    logits = study.logits_bytes if study.config.teacher.logits or study.logits_fit else 0
    if pieces := runs.get("teacher_logits"):
        checkpoints["teacher_logits"] = logits // pieces
    at_a_time = max(_in_flight([name for name in phase if name in checkpoints], runs, checkpoints, given.concurrent)
                    for phase in PHASES)
    predictions = len(study.splits.test) * (2 * len(study.splits.class_names) + 16)
    kept = {"teacher": (runs.get("teacher", 0) + 1) * teacher,
            # In pieces first, which go as they are put together, a view seed at a time.
            "teacher_logits": logits + logits // len(study.view_seeds),
            **{name: runs.get(name, 0) * (student + predictions) for name in CONFIRMATIONS}}
    kept = {name: max(0, count - _written(study, name)) for name, count in kept.items() if name in runs}
    return Room({"the checkpoints of trials that run (fewer with resources.concurrent)": at_a_time,
                 "trained teachers (one for each teacher.lr)": kept.get("teacher", 0),
                 "the teacher's logits (none with a smaller views.cache_gib)": kept.get("teacher_logits", 0),
                 "confirmed runs (fewer with fewer confirm.seeds)": sum(kept.get(name, 0) for name in CONFIRMATIONS),
                 "records and the report": OTHER_BYTES if runs else 0}, max(checkpoints.values(), default=0))


def _in_flight(names: list[str], runs: dict[str, int], checkpoints: dict[str, int], concurrent: int) -> int:
    """Bytes of the checkpoints of a phase's trials that run at a time, of each the last and the next."""
    total = 0
    for name in names:
        running = min(concurrent, runs[name])
        total, concurrent = total + 2 * running * checkpoints[name], concurrent - running
    return total


def _written(study: Study, name: str) -> int:
    """Bytes of a stage that are on the disk already."""
    try:
        folder = study.stage(name).path
    except MissingTeacherError:
        return 0
    size = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # where trials run, drafts come and go
            size += file.stat().st_size if file.is_file() else 0
    return size


def _check_place_room(study: Study, room: Room) -> None:
    if study.home.uri is not None:
        return
    folder, needed = _place(study.home), sum(room.parts.values())
    if (free := _free(folder)) < needed:
        largest = max(room.parts, key=room.parts.get)
        raise UserError(f"{study.home} has {show_bytes(free)} free, but the study still writes about "
                        f"{show_bytes(needed)}, mostly {largest}; make room, or choose another place with --dir")


def _check_temporary_room(where: str, trials: int, folder: str, free: int, room: Room) -> None:
    if free < (needed := trials * room.checkpoint):
        raise UserError(f"{folder} of {where} has {show_bytes(free)} free, but the checkpoints of {trials} trials pass "
                        f"through it, about {show_bytes(needed)}; make room there, or set TMPDIR to another place "
                        "before Ray is started")
