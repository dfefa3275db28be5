"""What cannot work is said in one line before the first trial: of this machine, and of real clusters of several nodes.
"""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import fsspec
import pytest
from nodes import Nodes
from running import kdstudy, with_set

from kdstudy.cli.main import cli
from kdstudy.config.load import load_study
from kdstudy.errors import UserError
from kdstudy.launch.common import copy_package
from kdstudy.planning import preflight
from kdstudy.planning.nodes import NOT_THERE, check_environment, environment
from kdstudy.planning.room import room_needed
from kdstudy.store.storage import Storage
from kdstudy.study import Study
from kdstudy.tune import cluster
from kdstudy.tune.cluster import Share, connected, waiting_note, why_not_connected


def study_in(folder, *settings, study="digits"):
    config = load_study(study, settings, smoke=True)
    return Study(config, Storage.of(folder))


def on(cpus, gpus):
    return f"resources.cpus_per_trial={cpus}", f"resources.gpus_per_trial={gpus}"


@pytest.fixture
def small_disk(tmp_path):
    """Makes folders of a few MiB."""
    with contextlib.ExitStack() as mounted:
        def make(name, options):
            folder = tmp_path / name
            folder.mkdir()
            mount = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True)
            if mount.returncode:
                pytest.skip("only root can mount a small disk")
            mounted.callback(subprocess.run, ["umount", "-l", folder], check=True)
            return folder

        yield make


# -- this machine ------------------------------------------------------------------------------------------------------


def test_a_plan_leaves_nothing_behind(tmp_path):
    preflight.check_here(study_in(tmp_path / "studies" / "mine"))
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_refused(tmp_path, small_disk):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"^{tmp_path}/file is a file, so {tmp_path}/file/mine cannot be a study "):
        preflight.check_here(study_in(tmp_path / "file" / "mine"))
    read_only = small_disk("read-only", "ro")
    with pytest.raises(UserError, match=rf"^cannot write to {read_only} \(Read-only file system\); .* --dir$"):
        preflight.check_here(study_in(read_only / "mine"))


def test_too_little_room_is_said_with_both_sizes_and_what_takes_most(small_disk):
    folder = small_disk("small", "size=4m")
    with pytest.raises(UserError, match=rf"^{folder}/mine has 4 MiB free, but the study still writes about .* MiB, "
                                        r"mostly the teacher's logits \(none with a smaller views\.cache_gib\); make "
                                        "room, or choose another location with --dir$"):
        preflight.check_here(study_in(folder / "mine", "views.count=30000"))


def test_what_a_study_has_written_already_needs_no_room(tmp_path):
    study, share = study_in(tmp_path / "mine"), Share(1, 0, 2)
    before = room_needed(study, share)
    teacher = study.stages["teacher"].folder.path
    teacher.mkdir(parents=True)
    (teacher / "model.safetensors").write_bytes(bytes(500_000))
    after = room_needed(study, share)
    assert sum(before.parts.values()) - sum(after.parts.values()) == 500_000


def test_more_trials_at_a_time_need_room_for_more_checkpoints(tmp_path):
    study = study_in(tmp_path / "mine")
    needed = {concurrent: sum(room_needed(study, Share(1, 0, concurrent)).parts.values())
              for concurrent in (2, 5, 500, 1000)}
    students = 58474 * 4 * 3 * 2  # weights and two moments; the last checkpoint and the next
    assert needed[5] - needed[2] == 3 * students
    assert needed[1000] == needed[500]  # no more runs than there are


def test_too_little_room_for_temporary_files_names_the_folder(tmp_path, small_disk, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk("tmp", "size=100k")))
    with pytest.raises(UserError, match=rf"^{tmp_path}/tmp of this machine has 100 KiB free, .* or set TMPDIR "):
        preflight.check_here(study_in(tmp_path / "mine"))


# -- clusters that cannot be used --------------------------------------------------------------------------------------


@pytest.fixture
def short_folder():
    """For Ray's sockets, whose paths must be short."""
    return Path(tempfile.mkdtemp(prefix="kd"))


@pytest.mark.slow
def test_a_cluster_that_wants_a_token_says_which_variables_to_set(short_folder, monkeypatch):
    nodes = Nodes(short_folder, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="the-token-of-this-cluster")
    try:
        nodes.start("head", 1)
        started = time.monotonic()
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        remedy = (r"; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN \(or RAY_AUTH_TOKEN_PATH\) to the token that it was "
                  r"started with, unless that is the one in ~/\.ray/auth_token$")
        with pytest.raises(UserError, match=f"^the Ray cluster at {nodes.address} requires a token{remedy}"):
            cluster.check_connection(nodes.address)
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.setenv("RAY_AUTH_TOKEN", "the-token-of-another-one")
        with pytest.raises(UserError, match=f"^the Ray cluster at {nodes.address} refuses the token in RAY_AUTH_TOKEN"
                                            + remedy):
            cluster.check_connection(nodes.address)
        assert time.monotonic() - started < 30
        monkeypatch.setenv("RAY_AUTH_TOKEN", "the-token-of-this-cluster")
        cluster.check_connection(nodes.address)
    finally:
        nodes.stop()


def test_an_address_where_no_cluster_is_does_not_hang(monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 3)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(UserError, match=f"^no Ray cluster answers at {address}; check --address or RAY_ADDRESS "):
            cluster.check_connection(address)


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265", "head", "two words:1"])
def test_an_address_that_is_not_the_clusters_own_is_refused(address):
    with pytest.raises(UserError, match=f"^the address '{address}' is not HOST:PORT"):
        cluster.check_connection(address)


def test_other_versions_on_the_cluster_are_named():
    from ray._private.utils import check_version_info  # Ray's own words

    with pytest.raises(RuntimeError) as raised:
        check_version_info({"ray_version": "2.51.0", "python_version": "3.12.1"}, "here")
    assert why_not_connected("head:6379", str(raised.value)).startswith(
        "the Ray cluster at head:6379 runs Ray 2.51.0 on Python 3.12.1, this machine Ray ")


# -- clusters of several nodes -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What the nodes share, what the last one does not, and what it may not write."""
    home = tmp_path_factory.mktemp("cluster")
    for name in ("shared", "apart", "read-only"):
        (home / name).mkdir()
    return home


@pytest.fixture(scope="module")
def store():
    """An S3 server with a bucket, as the environment that leads there."""
    moto_server = pytest.importorskip("moto.server", reason="moto's server is not installed")
    s3fs = pytest.importorskip("s3fs")
    logging.getLogger("werkzeug").setLevel("ERROR")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    s3fs.S3FileSystem(endpoint_url=endpoint, key="key", secret="secret").mkdir("bucket")
    yield {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
           "AWS_ENDPOINT_URL": endpoint, "AWS_MAX_ATTEMPTS": "1"}
    server.stop()


@pytest.fixture(scope="module")
def nodes(folders, store):
    """A head with 3 CPUs, a node with 2 GPUs and an older kdstudy, and, for root, one with a GPU that sees other
    files."""
    older = folders / "older"
    copy_package(older)
    with open(older / "kdstudy" / "trainables" / "loop.py", "a") as file:
        file.write("# as it was before\n")
    nodes = Nodes(Path(tempfile.mkdtemp(prefix="kd")), **store)
    try:
        nodes.start("head", 3)
        nodes.start("older", 1, 2, PYTHONPATH=str(older))
        if can_unshare():
            nodes.start("apart", 2, 1, before=f"mount -t tmpfs none {folders}/apart && mount --bind -o ro "
                                              f"{folders}/read-only {folders}/read-only",
                        AWS_ENDPOINT_URL="http://127.0.0.1:1")
        yield nodes
    finally:
        nodes.stop()


def can_unshare():
    return subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def ray(nodes):
    import ray

    with connected(nodes.address) as ours:
        assert not ours
        yield ray


needs_unshare = pytest.mark.skipif(not can_unshare(), reason="only root can give a node other files")


@pytest.mark.slow
def test_a_plan_for_a_cluster_speaks_of_that_cluster(ray, nodes, folders, capsys):
    cli(["plan", "digits", "--smoke", *with_set(on(3, 0)), "--dir", str(folders / "shared" / "mine"), "--address",
         nodes.address], standalone_mode=False)
    machine = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("machine"))
    assert f"1 at a time, each 3 CPU; the cluster at {nodes.address}: " in machine and " nodes" in machine
    assert list((folders / "shared").iterdir()) == []


@pytest.mark.slow
def test_a_node_with_another_kdstudy_is_found_before_the_first_trial(nodes, folders, tmp_path):
    ran = kdstudy("run", "digits", "--smoke", *with_set(on(1, 2)), "--dir", tmp_path / "mine", cwd=tmp_path,
                  check=False, env={**os.environ, "RAY_ADDRESS": nodes.address})
    assert ran.returncode == 2
    assert ran.stderr == ("kdstudy: node older has a different kdstudy than this machine; install this one there too "
                          "(pip install, from the same source)\n")
    assert not list(tmp_path.glob("mine/*/record.jsonl"))


@pytest.mark.slow
@needs_unshare
def test_a_folder_that_a_node_does_not_share_is_refused(ray, folders):
    folder = folders / "apart" / "mine"
    with pytest.raises(UserError, match=f"^{folder} is not shared with node apart; choose with --dir a folder on a "
                                        "file system that all nodes share, or an object store "):
        preflight.check_cluster(study_in(folder, *on(2, 1)))
    assert preflight.check_cluster(study_in(folder, *on(3, 0))) == Share(3, 0, 1)  # no trial will run on that node
    assert list((folders / "apart").iterdir()) == []


@pytest.mark.slow
@needs_unshare
def test_a_folder_that_a_node_may_only_read_is_refused(ray, folders):
    with pytest.raises(UserError, match=rf"^node apart cannot write to {folders}/read-only \(Read-only file system\)"):
        preflight.check_cluster(study_in(folders / "read-only" / "mine", *on(2, 1)))
    assert list((folders / "read-only").iterdir()) == []


@pytest.mark.slow
@needs_unshare
def test_an_object_store_is_tried_from_every_node(ray, store, monkeypatch):
    for name, value in store.items():
        monkeypatch.setenv(name, value)
    files = fsspec.get_filesystem_class("s3")
    files.clear_instance_cache()
    study = study_in("s3://bucket/studies/mine", *on(3, 0))
    assert preflight.check_cluster(study) == Share(3, 0, 1)
    with pytest.raises(UserError, match=r"^node apart cannot read s3://bucket/studies/mine \(Could not connect to the "
                                        r"endpoint URL: .*\); fix that, or choose another location with --dir$"):
        preflight.check_cluster(study_in("s3://bucket/studies/mine", *on(2, 1)))
    assert files(use_listings_cache=False).find("bucket") == []
    files.clear_instance_cache()


@pytest.mark.slow
def test_resources_that_no_node_has_together_are_refused(ray, tmp_path):
    with pytest.raises(UserError, match=r"^no machine has both resources\.cpus_per_trial = 3 and "
                                        r"resources\.gpus_per_trial = 2: there are 1 CPU \+ 2 GPU, "):
        preflight.check_cluster(study_in(tmp_path / "mine", *on(3, 2)))


@pytest.mark.slow
def test_a_model_of_ones_own_that_a_node_cannot_import_is_refused(ray, tmp_path, monkeypatch):
    (tmp_path / "own_net.py").write_text("import timm\n\ndef make(num_classes, in_chans, **args):\n    return "
                                         "timm.create_model('vit_tiny_patch16_224', num_classes=num_classes, "
                                         "in_chans=in_chans, **args)\n")
    monkeypatch.syspath_prepend(tmp_path)
    study = study_in(tmp_path / "mine", *on(3, 0), "student.model=own_net:make")
    with pytest.raises(UserError, match=r"^student\.model = 'own_net:make' cannot be imported on node head \(No module "
                                        r"named 'own_net'\); put the same files on "):
        preflight.check_cluster(study)


@pytest.mark.slow
def test_resources_that_another_job_holds_are_noted(ray):
    @ray.remote(num_cpus=1, num_gpus=2)
    class Other:
        def ready(self):
            pass

    given = Share(1, 2, 1)
    assert waiting_note(given) is None
    other = Other.remote()
    ray.get(other.ready.remote())
    assert waiting_note(Share(1, 0, 1)) is None
    held = waiting_note(given)
    ray.kill(other)
    assert held.startswith("other jobs use the cluster (") and " GPUs are free)" in held


@pytest.mark.slow
def test_a_node_that_does_not_answer_is_named(ray, nodes, tmp_path, monkeypatch):
    monkeypatch.setattr("kdstudy.planning.nodes.NODE_SECONDS", 2)
    raylet = nodes.raylet("older")
    os.kill(raylet, signal.SIGSTOP)
    try:
        with pytest.raises(UserError, match=r"^node older did not answer within 2 s; "):
            preflight.check_cluster(study_in(tmp_path / "mine", *on(1, 2)))
    finally:
        os.kill(raylet, signal.SIGCONT)


# -- packages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("there", "message"), [
    ({"torch": "2.0.0"}, "node far has torch 2.0.0, this machine {torch}; run there: pip install torch=={torch}"),
    ({"timm": NOT_THERE}, "node far has no timm; run there: pip install timm=={timm}"),
    ({"pyarrow": NOT_THERE}, "node far has no pyarrow; run there: pip install pyarrow"),
    ({"Python": "3.9"}, "node far has Python 3.9, this machine {Python}; install the same on both"),
    ({"kdstudy": NOT_THERE}, "node far has no kdstudy; install this one there too (pip install, from the "
                                       "same source)"),
])
def test_packages_that_differ_are_named_with_what_to_install(there, message):
    here = environment({})
    node = cluster.Node("1", "far", 4, 0)
    check_environment(node, dict(here), here, {})
    with pytest.raises(UserError) as raised:
        check_environment(node, here | there, here, {})
    assert str(raised.value) == message.format(**here)


def test_builds_of_the_same_torch_are_the_same(tmp_path, monkeypatch):
    """A node with CUDA and a driver without."""
    here = environment({})["torch"]
    package = tmp_path / "torch.dist-info"
    package.mkdir()
    (package / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {here}+cu999\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert environment({})["torch"] == here
