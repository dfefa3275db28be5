"""What `kdstudy submit --to kuberay` creates: against KubeRay's own definition of a RayJob."""

import copy
import gzip
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from synthetic import here, is_one_line

from kdstudy.config.load import load_study

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")

DEFINITION = Path(__file__).parents[2] / "shared" / "kuberay" / "ray.io_rayjobs.crd.yaml.gz"
SUBMIT = ["submit", "digits", "--to", "kuberay", "--dir", "s3://bucket/studies/digits", "--image", "registry/kdstudy:1"]


def manifests(*more):
    code, out, err = here(*SUBMIT, "--print", *more)
    assert code == 0, err
    settings, job = yaml.safe_load_all(out)
    return settings, job


def pod(group):
    spec = group["template"]["spec"]
    return spec, spec["containers"][0]


@pytest.fixture(scope="session")
def accepted():
    """Validates a RayJob as a Kubernetes server with KubeRay does that refuses unknown fields."""
    if not DEFINITION.is_file():
        pytest.skip("KubeRay's definition of a RayJob does not lie beside the project")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    definition = yaml.load(gzip.decompress(DEFINITION.read_bytes()), Loader=loader)
    versions = {version["name"]: version["schema"]["openAPIV3Schema"] for version in definition["spec"]["versions"]}
    schema = versions["v1"]
    # A server knows what metadata holds.
    schema["properties"]["metadata"] = {"type": "object", "properties": {
        "name": {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]{0,45}[a-z0-9])?$"},
        "namespace": {"type": "string"}}}
    return jsonschema.Draft202012Validator(closed(schema))


def closed(schema):
    """The same schema, in which objects have no other fields than those that are named."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: value if key in ("default", "enum") else closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    return schema


MORE = [(), ("--gpus-per-node", "4", "--cpus-per-node", "16", "--memory", "120Gi", "--workers", "3"),
        ("--namespace", "vision", "--env-from", "store-credentials", "--env", "AWS_ENDPOINT_URL=http://store:9000"),
        ("--until", "distill", "--smoke")]


@pytest.mark.parametrize("more", MORE)
def test_kuberay_accepts_the_job(accepted, more):
    accepted.validate(manifests(*more)[1])


@pytest.mark.parametrize("version", ["1.28", "1.37"])
@pytest.mark.parametrize("more", MORE)
def test_kubernetes_accepts_the_settings_and_every_pod(version, more):
    """By Kubernetes' own schemas, which KubeRay's definition of a RayJob only repeats in part."""
    kubernetes = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    settings, job = manifests(*more)
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    templates = [group["template"] for group in groups] + [job["spec"].get("submitterPodTemplate")]
    pods = [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}} | template for template in templates
            if template]
    assert len(pods) >= 2
    for manifest in (settings, *pods):
        kubernetes.validate(manifest, version, strict=True)
    pods[0]["spec"]["containers"][0]["resources"]["request"] = {}
    with pytest.raises(kubernetes.ValidationError, match="request"):
        kubernetes.validate(pods[0], version, strict=True)


@pytest.mark.parametrize("path", [("spec",), ("spec", "rayClusterSpec"), ("spec", "rayClusterSpec", "headGroupSpec"),
                                  ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0)])
def test_a_field_that_kuberay_does_not_know_would_be_noticed(accepted, path):
    job = copy.deepcopy(manifests()[1])
    part = job
    for key in path:
        part = part[key]
    part["shutDownAfterJobFinishes"] = True
    with pytest.raises(jsonschema.ValidationError, match="shutDownAfterJobFinishes"):
        accepted.validate(job)


def test_the_job_runs_the_very_study_that_was_named_here(tmp_path):
    settings, job = manifests("--set", "search.trials=44", "--until", "distill")
    file = tmp_path / "study.toml"
    file.write_text(settings["data"]["study.toml"])
    assert load_study(str(file)) == load_study("digits", ("search.trials=44",))
    head, container = pod(job["spec"]["rayClusterSpec"]["headGroupSpec"])
    mounted = container["volumeMounts"][0]
    assert job["spec"]["entrypoint"] == (f"python -m kdstudy run {mounted['mountPath']}/study.toml --dir "
                                         "s3://bucket/studies/digits --until distill")
    assert [volume["configMap"]["name"] for volume in head["volumes"] if volume["name"] == mounted["name"]] == [
        settings["metadata"]["name"]]


def test_resources_secrets_and_variables_are_where_they_were_asked_for():
    settings, job = manifests("--workers", "3", "--gpus-per-node", "4", "--cpus-per-node", "16", "--memory", "120Gi",
                              "--namespace", "vision", "--env-from", "store", "--env", "AWS_ENDPOINT_URL=http://s:1")
    spec = job["spec"]["rayClusterSpec"]
    [workers] = spec["workerGroupSpecs"]
    assert [workers[name] for name in ("replicas", "minReplicas", "maxReplicas")] == [3, 3, 3]
    assert pod(workers)[1]["resources"]["limits"] == {"cpu": 16, "memory": "120Gi", "nvidia.com/gpu": 4}
    head = pod(spec["headGroupSpec"])[1]
    assert "nvidia.com/gpu" not in head["resources"]["limits"]
    for container in (head, pod(workers)[1]):
        assert container["image"] == "registry/kdstudy:1"
        assert container["envFrom"] == [{"secretRef": {"name": "store"}}]
        assert container["env"] == [{"name": "AWS_ENDPOINT_URL", "value": "http://s:1"}]
    assert {part["metadata"]["namespace"] for part in (settings, job)} == {"vision"}


def test_the_head_takes_no_trials_nobody_without_the_token_gets_in_and_a_preempted_job_is_tried_again():
    spec = manifests()[1]["spec"]
    assert spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert spec["backoffLimit"] > 0 and spec["shutdownAfterJobFinishes"]
    stopping = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]
    assert int(stopping) > 3  # Ray's own, within which a driver does not end in order


def test_any_name_of_a_study_becomes_one_that_kubernetes_allows(accepted):
    for name in ("A.b_C", "x" * 100, "9-" + "y-" * 30, "trailing."):
        settings, job = manifests("--set", f"name={name}")
        accepted.validate(job)
        assert settings["metadata"]["name"] == job["metadata"]["name"]


@pytest.mark.parametrize(("more", "said"), [
    (("--memory", "much"), "--memory much is not a Kubernetes size such as 32Gi"),
    (("--image", ""), "--image is needed"),
    (("--nodes", "2"), "--nodes does not apply to --to kuberay, only to --to slurm"),
    (("--env", "NOWHERE_SET"), "NOWHERE_SET is not set here"),
    (("--env", "not a name=1"), "is not of the form NAME=VALUE or NAME"),
    (("--dir", "studies/mine"), "--dir studies/mine is relative"),
    (("--set", "data.source=images"), "data.source = 'images' is relative"),
])
def test_what_cannot_work_is_said_in_one_line(more, said):
    code, out, err = here(*SUBMIT, "--print", *more)
    assert (code, out) == (2, "") and is_one_line(err) and said in err, err


def test_it_is_handed_to_kubectl_with_words_on_how_to_go_on(tmp_path, monkeypatch):
    (tmp_path / "kubectl").write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path}/words\ncat > {tmp_path}/created\n")
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    code, out, err = here(*SUBMIT, "--namespace", "vision")
    assert code == 0, err
    assert (tmp_path / "words").read_text().split() == ["create", "-f", "-"]
    settings, job = yaml.safe_load_all((tmp_path / "created").read_text())
    name = job["metadata"]["name"]
    assert tomllib.loads(settings["data"]["study.toml"])["name"] == "digits"
    for words in (f"kubectl logs -f -n vision -l job-name={name}", f"kubectl delete -n vision rayjob/{name} configmap/",
                  "kdstudy fetch s3://bucket/studies/digits FOLDER"):
        assert words in out


def test_a_kubectl_that_refuses_or_is_missing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = here(*SUBMIT)
    assert code == 2 and is_one_line(err) and "kubectl is not on this machine's PATH" in err
    (tmp_path / "kubectl").write_text("#!/bin/sh\necho 'no matches for kind \"RayJob\"\nensure CRDs' >&2\nexit 1\n")
    (tmp_path / "kubectl").chmod(0o755)
    assert subprocess.run(["kubectl"], capture_output=True).returncode == 1
    code, _, err = here(*SUBMIT)
    assert code == 2 and is_one_line(err) and "no matches for kind" in err and "KubeRay is installed" in err
