"""Studies on an object store: against a real S3-compatible server, started here."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from running import KDSTUDY, ONE_AT_A_TIME, kdstudy, results_of, wait_until
from synthetic import here, is_one_line, write_finished
from test_watch import a_study, add_report, expected_of, watching, written

from kdstudy.config.load import load_series
from kdstudy.errors import StorageError, UserError
from kdstudy.store import lease as leases
from kdstudy.store import storage as storages
from kdstudy.store.lease import Lease
from kdstudy.store.record import Record, TrialState
from kdstudy.store.storage import Storage

moto_server = pytest.importorskip("moto.server", reason="moto's server is not installed")
pytest.importorskip("s3fs")


@pytest.fixture(scope="module")
def server():
    """An S3 server on a free port, with a bucket; this process and those that it starts find it by their environment.
    """
    import s3fs

    logging.getLogger("werkzeug").setLevel("ERROR")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
                            "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
            environment.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()  # which may know another server
        files = s3fs.S3FileSystem()
        if not files.exists("bucket"):  # moto's servers in one process share what they hold
            files.mkdir("bucket")
        yield
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def machine(server, tmp_path, monkeypatch):
    """Makes this process stand for another machine: it has copies of its own, and no process of the others is here."""

    def become(name):
        monkeypatch.setenv("KDSTUDY_CACHE", str(tmp_path / name))
        monkeypatch.setattr(leases, "_processes", lambda: name)

    become("one")
    return become


def objects(uri):
    import fsspec

    files, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    return {name.removeprefix(f"{path}/"): files.cat_file(name) for name in files.find(path)}


def timeless(results):
    return {name: value for name, value in results.items() if name != "seconds"}


def happened(record):
    """What a record tells but for the time that it took."""
    untimed = ("seconds", "images_per_second")
    return {number: (trial.parameters, trial.seed, trial.state,
                     [(report["epoch"], report["decision"],
                       {name: value for name, value in report["metrics"].items() if name not in untimed})
                      for report in trial.reports]) for number, trial in record.trials.items()}


@pytest.mark.slow
def test_killed_on_one_machine_and_gone_on_with_on_another_it_equals_a_local_study(finished, server, tmp_path):
    """The first machine's copy is out of reach: all that counts has to be in the object store."""
    uri, local = "s3://bucket/studies/digits-smoke", finished[0]
    run = ["run", *ONE_AT_A_TIME, "--dir", uri]

    def on(name):
        return {**os.environ, "KDSTUDY_CACHE": str(tmp_path / name)}

    first = subprocess.Popen([*KDSTUDY, *run], cwd=tmp_path, env=on("one"), stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
    wait_until(first, lambda: sum(
        trial.state != "running" for path in tmp_path.glob("one/studies/*/*/distill-*/record.jsonl")
        for trial in Record(path, write=False).trials.values()) >= 3)
    running = kdstudy("status", uri, cwd=tmp_path, env=on("three")).stdout
    assert "last report" in running and "cut off" not in running
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    before = {path.parent.name: happened(Record(path, write=False)) for path in
              tmp_path.glob("one/studies/*/*/*/record.jsonl")}
    assert "cut off" in kdstudy("status", uri, cwd=tmp_path, env=on("three")).stdout
    printed = kdstudy(*run, cwd=tmp_path, env=on("two")).stdout
    assert f"report           ✓ {uri}/results/report.html" in printed
    stored = objects(uri)
    assert timeless(json.loads(stored["results/results.json"])) == timeless(results_of(local))
    copy = next(tmp_path.glob("two/studies/*/digits-smoke"))
    for path in local.glob("*/record.jsonl"):
        name = path.parent.name
        record = Record(copy / name / "record.jsonl", write=False)
        assert happened(record) == happened(Record(path, write=False)) and record.mismatches == 0
        ended = {number: trial for number, trial in before.get(name, {}).items() if trial[2] != "running"}
        assert ended.items() <= happened(record).items()
        assert stored[f"{name}/record.jsonl"] == (copy / name / "record.jsonl").read_bytes()
    files = {str(path.relative_to(local)) for path in local.rglob("*") if path.is_file()}
    expected = {name for name in files if not any(part.startswith(".") for part in Path(name).parts)
                and not name.startswith(("solo/", "results/images/"))}
    assert set(stored) == expected  # all of it, no part of a record, no checkpoint, no lease
    kdstudy("export", uri, tmp_path / "student", cwd=tmp_path, env=on("three"))
    assert (tmp_path / "student" / "model.safetensors").read_bytes() == stored["export/model.safetensors"]
    beside = kdstudy("run", *ONE_AT_A_TIME, "--dir", "s3://bucket/studies/beside", "--until", "baseline",
                     "--set", "search.alpha.linear=[0.2, 0.8]", cwd=tmp_path, env=on("three")).stdout
    assert " ".join(beside.split()).count("(taken from digits-smoke)") == 2


def trial(number):
    return TrialState(number, {"lr": 0.1 + number}, number, 0, "sobol")


def recorded(record):
    return [(number, [report["epoch"] for report in trial.reports]) for number, trial in record.trials.items()]


def test_a_record_is_read_from_another_machine_while_it_is_written(machine, monkeypatch):
    monkeypatch.setattr(storages, "COMPACT_AFTER", 20)
    writer = Storage.of("s3://bucket/records/one")
    record = Record(writer.folder / "baseline-1" / "record.jsonl", storage=writer)
    reader = None
    for number in range(3):
        record.add_trial(trial(number))
        for epoch in range(1, 15):
            record.report(number, epoch, "continue", {"validation_accuracy": 0.5})
            if epoch % 5 == 0:
                machine("two")
                reader = Storage.of("s3://bucket/records/one")
                reader.refresh()
                machine("one")
                seen = Record(reader.folder / "baseline-1" / "record.jsonl", write=False)
                assert reader.folder != writer.folder and recorded(seen) == recorded(record)
    assert len(objects("s3://bucket/records/one/baseline-1")) < 25  # from time to time its events become one object
    writer.publish(writer.folder / "baseline-1")
    assert list(objects("s3://bucket/records/one/baseline-1")) == ["record.jsonl"]


def test_an_event_that_is_both_in_the_record_and_an_object_of_its_own_counts_once(machine):
    """As a driver leaves it that is killed between writing the record anew and removing the objects."""
    import fsspec

    one = Storage.of("s3://bucket/records/two")
    record = Record(one.folder / "baseline-1" / "record.jsonl", storage=one)
    for number in range(3):
        record.add_trial(trial(number))
    parts = objects("s3://bucket/records/two/baseline-1")
    one.publish(one.folder / "baseline-1")
    for name, content in parts.items():
        fsspec.filesystem("s3").pipe_file(f"bucket/records/two/baseline-1/{name}", content)
    machine("two")
    two = Storage.of("s3://bucket/records/two")
    two.refresh(everything=True)
    again = Record(two.folder / "baseline-1" / "record.jsonl", storage=two)
    assert (two.folder / "baseline-1" / "record.jsonl").read_bytes() == record.path.read_bytes()
    again.add_trial(trial(3))
    assert list(again.trials) == [0, 1, 2, 3]


def test_a_copy_follows_what_is_changed_and_removed(machine):
    one = Storage.of("s3://bucket/copies/one")
    contents = {"study.toml": "a", "stage/a.json": "1", "stage/b.json": "2", "stage/big.safetensors": "w"}
    for name, content in contents.items():
        (one.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (one.folder / name).write_text(content)
    one.publish(one.folder / "stage", one.folder / "study.toml")
    machine("two")
    two = Storage.of("s3://bucket/copies/one")
    two.refresh()
    assert sorted(path.name for path in (two.folder / "stage").iterdir()) == ["a.json", "b.json"]  # nothing large
    two.refresh(everything=True)
    assert (two.folder / "stage" / "big.safetensors").read_text() == "w"
    (one.folder / "stage" / "b.json").unlink()
    (one.folder / "stage" / "a.json").write_text("3")  # as long as before
    one.publish(one.folder / "stage")
    two.refresh()
    assert (two.folder / "stage" / "a.json").read_text() == "3" and not (two.folder / "stage" / "b.json").exists()


def test_a_second_driver_on_another_machine_is_refused_by_name(machine, monkeypatch):
    monkeypatch.setattr(leases, "RENEWED_EVERY", 0.2)
    monkeypatch.setattr(leases, "CHECKED_EVERY", 0.1)
    monkeypatch.setattr(leases, "SETTLED_AFTER", 0.2)
    with Storage.of("s3://bucket/leases/one").driven():
        machine("two")
        other = Storage.of("s3://bucket/leases/one")
        assert other.is_driven()
        with pytest.raises(UserError, match=rf"in use by process {os.getpid()} on \S+"), other.driven():
            pass
    assert not other.is_driven() and objects("s3://bucket/leases/one") == {}
    with other.driven():
        pass


def abandoned(uri, monkeypatch):
    """A lease whose holder is not heard of any more, but may come back."""
    import fsspec

    files, path = fsspec.core.url_to_fs(uri)
    monkeypatch.setattr(leases, "RENEWED_EVERY", 0.2)
    monkeypatch.setattr(leases, "CHECKED_EVERY", 0.1)
    monkeypatch.setattr(leases, "STALE_AFTER", 1.0)
    monkeypatch.setattr(leases, "SETTLED_AFTER", 0.5)
    lease = Lease(files, f"{path}/.lease", uri)
    with monkeypatch.context() as away:
        away.setattr(lease, "_renew", lambda: None)
        lease.__enter__()
    return lease


def test_a_stale_lease_is_taken_over_and_its_holder_notices(machine, monkeypatch):
    uri = "s3://bucket/leases/two"
    lost = abandoned(uri, monkeypatch)
    machine("two")
    with Storage.of(uri).driven():
        renewing = threading.Thread(target=lost._renew)
        renewing.start()
        renewing.join(timeout=10)
        with pytest.raises(StorageError, match="was taken over by process"):
            lost.check()


def test_of_two_that_take_over_a_stale_lease_one_gets_it(machine, monkeypatch):
    uri = "s3://bucket/leases/three"
    abandoned(uri, monkeypatch)
    monkeypatch.setattr(leases, "_is_dead_here", lambda holder: False)  # they share a process here, not a machine
    got, done = [], threading.Event()

    def drive(folder):
        with contextlib.suppress(UserError), Storage(folder, uri).driven():
            got.append(folder)
            done.wait(10)

    drivers = [threading.Thread(target=drive, args=(Storage.of(uri).folder.with_name(name),)) for name in "ab"]
    for driver in drivers:
        driver.start()
    drivers[0].join(timeout=4)
    drivers[1].join(timeout=1)
    done.set()
    for driver in drivers:
        driver.join()
    assert len(got) == 1


def test_a_store_out_of_reach_is_one_line_and_leaves_the_record_as_it_was(machine, monkeypatch):
    home = Storage.of("s3://bucket/away")
    record = Record(home.folder / "baseline-1" / "record.jsonl", storage=home)
    record.add_trial(trial(0))
    written = record.path.read_bytes()
    monkeypatch.setattr(home._remote.system, "pipe_file", unreachable)
    with pytest.raises(StorageError, match=r"^cannot reach s3://bucket/away: .*run the same command again$"):
        record.add_trial(trial(1))
    assert record.path.read_bytes() == written and list(record.trials) == [0]


def unreachable(*_, **__):
    raise ConnectionError("Could not connect to the endpoint")


@pytest.mark.parametrize(("place", "message"), [
    ("s3://bucket", "names no folder"),
    ("nope://bucket/x", "Protocol not known: nope"),
    ("s3://missing/x", "The specified bucket does not exist"),
])
def test_a_place_that_cannot_be_is_one_line_and_exit_code_2(place, message, server, apart):
    code, _, err = here("run", "digits", "--smoke", "--dir", place)
    assert code == 2 and message in err and is_one_line(err), err


def test_a_file_uri_is_a_path(tmp_path):
    home = Storage.of(f"file://{tmp_path}/my%20study")
    assert home.folder == tmp_path / "my study" and home.uri is None


def test_a_study_is_brought_home_whole_or_its_results_alone(synthetic_study, machine, tmp_path):
    import fsspec

    uri = "s3://bucket/by-hand/digits-smoke"
    files, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    files.put(f"{synthetic_study}/", path, recursive=True)
    for name, more in (("all", []), ("results", ["--results"])):
        machine(name)
        kdstudy("fetch", uri, tmp_path / f"home-{name}", *more, cwd=tmp_path)
    there = {str(file.relative_to(synthetic_study)) for file in synthetic_study.rglob("*") if file.is_file()}
    brought = {name: {str(file.relative_to(tmp_path / name)) for file in (tmp_path / name).rglob("*") if file.is_file()}
               for name in ("home-all", "home-results")}
    assert brought["home-all"] == there
    missing = there - brought["home-results"]
    assert missing and all(name.endswith((".safetensors", ".npy", ".db")) for name in missing)
    assert not any(name.startswith(("results/", "export/")) for name in missing)


def test_a_series_at_a_uri_has_members_there(machine, tmp_path):
    """Not in the copy on this machine, which holds only what is needed to read them."""
    import fsspec

    uri = "s3://bucket/series/mine"
    files, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    series = load_series("digits", ("train.epochs=[4, 6]",), smoke=True)
    files.pipe_file(f"{path}/study.toml", series.to_toml().encode())
    code, _, err = here("pack", uri, str(tmp_path / "out"))
    assert code == 2 and is_one_line(err) and f"one of its members: {uri}/train.epochs=4, {uri}/train.epochs=6" in err
    code, out, _ = here("status", uri)
    assert code == 0 and "0 of 2 studies done" in out


def test_a_series_is_copied_with_its_members(machine, tmp_path):
    import fsspec

    uri, own = "s3://bucket/series/begun", tmp_path / "own"
    own.mkdir()
    (own / "study.toml").write_text(load_series("digits", ("train.epochs=[4, 6, 8]",), smoke=True).to_toml())
    for epochs in (4, 6, 9):  # the third has not begun; 9 is in the list no more
        write_finished(own / f"train.epochs={epochs}", f"train.epochs={epochs}")
    assert here("report", str(own))[0] == 0
    files, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    files.put(f"{own}/", f"{path}/", recursive=True)
    machine("two")
    there = {name for name in objects(uri) if "epochs=9" not in name}
    for name, place, more in (("all", uri, ()), ("results", uri, ("--results",)), ("shared", own, ())):
        code, _, err = here("fetch", str(place), str(tmp_path / name), *more)
        assert code == 0, err
        copy = tmp_path / name
        brought = {file.relative_to(copy).as_posix() for file in copy.rglob("*") if file.is_file()}
        assert brought < there if more else brought == there
        assert not any(missing.endswith((".html", ".json", ".jsonl", ".toml")) for missing in there - brought)
        code, out, _ = here("status", str(tmp_path / name))
        assert code == 0 and "2 of 3 studies done" in out
        assert here("report", str(tmp_path / name))[0] == 0


def test_event_files_are_published_when_the_command_ends_and_gone_on_with_elsewhere(machine):
    uri = "s3://bucket/watched/one"
    first = Storage.of(uri)
    with first.driven():
        _, record = a_study(first.folder)
        with watching(first, "watch.tensorboard=true")[0]:
            pass
        first.publish(first.folder)
    begun = {name: content for name, content in objects(uri).items() if name.startswith("tensorboard/")}
    assert set(begun) == {str(path.relative_to(first.folder)) for path in first.folder.glob("tensorboard/*/*/*")}
    machine("two")
    second = Storage.of(uri)
    with second.driven():
        record = Record(second.folder / record.path.relative_to(first.folder), storage=second)
        with watching(second, "watch.tensorboard=true")[0]:
            add_report(record, 1, 4)
    assert written(second.folder) == expected_of(record) and second.folder != first.folder
    ended = objects(uri)
    assert all(ended[name].startswith(content) for name, content in begun.items())
