"""The manifest is a JobSet, and its pods find their places.

The field names, their places and their values were compared with the schema that JobSet publishes;
docs/launch.md names the versions.
"""

import pytest
import yaml

from tfgpu.errors import RequestError
from tfgpu.launch import command as commands
from tfgpu.launch import kubernetes
from tfgpu.launch.settings import LaunchSettings


def settings(**more):
    given = {"backend": "kubernetes", "workers": 3, "image": "example.com/tfgpu:1"}
    return LaunchSettings(**given | {"shared_volume": "claim"} | more)


def manifest(capsys, *argv, **more):
    """The manifest as it is printed, read again."""
    config = settings(**more)
    kubernetes.write(config, commands.read(config, argv or ["train"]))
    return yaml.safe_load(capsys.readouterr().out)


def job_of(found):
    (replicated,) = found["spec"]["replicatedJobs"]
    assert set(replicated) == {"name", "replicas", "template"}
    return replicated["template"]["spec"]


def container_of(found):
    (container,) = job_of(found)["template"]["spec"]["containers"]
    return container


def flags_of(found):
    """The arguments of the pods, before and behind --."""
    args = container_of(found)["args"]
    split = args.index("--")
    return args[:split], args[split + 1 :]


def test_it_is_a_jobset(capsys):
    found = manifest(capsys)
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert set(found["spec"]) == {"network", "failurePolicy", "replicatedJobs"}


def test_each_worker_is_a_pod_of_one_indexed_job(capsys):
    found = manifest(capsys)
    job = job_of(found)
    assert found["spec"]["replicatedJobs"][0]["replicas"] == 1
    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", 3, 3)


def test_a_lost_pod_starts_all_again_and_a_fault_of_its_own_ends_all(capsys):
    found = manifest(capsys, max_restarts=4)
    job, policy = job_of(found), found["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 4
    assert job["backoffLimit"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    # Not 6, a lost worker, nor the codes of signals: a node that drains sends one.
    assert rule["onExitCodes"]["values"] == [1, 2, 3, 4, 5]
    assert rule["onExitCodes"]["containerName"] == container_of(found)["name"]
    (fails,) = policy["rules"]
    assert (fails["action"], fails["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


def test_the_host_names_of_the_pods_are_those_that_the_jobset_gives_them(capsys):
    """<jobset>-<job>-<replica>-<index>.<subdomain>, see `network` in JobSet's schema."""
    found = manifest(capsys, name="mine")
    name, job = found["metadata"]["name"], found["spec"]["replicatedJobs"][0]["name"]
    network = found["spec"]["network"]
    assert network["enableDNSHostnames"] and network["publishNotReadyAddresses"]
    ours, _ = flags_of(found)
    given = dict(flag.removeprefix("--").split("=") for flag in ours[1:])
    pod = LaunchSettings(
        backend=given["backend"],
        name=given["name"],
        workers=int(given["workers"]),
        port=int(given["port"]),
    )
    place = kubernetes.find({"JOB_COMPLETION_INDEX": "2"}, pod)
    subdomain, port = network["subdomain"], container_of(found)["ports"][0]["containerPort"]
    assert place.index == 2
    assert place.addresses[2] == f"{name}-{job}-0-2.{subdomain}:{port}"
    assert len(place.addresses) == 3


def test_the_token_comes_from_a_secret_and_is_not_in_the_manifest(capsys, monkeypatch):
    monkeypatch.setenv("TFGPU_CLUSTER_TOKEN", "not-to-be-seen")
    found = manifest(capsys, token_secret="mine")
    (variable,) = container_of(found)["env"]
    assert variable["name"] == "TFGPU_CLUSTER_TOKEN"
    assert variable["valueFrom"] == {"secretKeyRef": {"name": "mine", "key": "token"}}
    assert "not-to-be-seen" not in yaml.safe_dump(found)


def test_the_run_is_on_the_volume(capsys):
    found = manifest(capsys, "train", "--epochs=3")
    volume = job_of(found)["template"]["spec"]["volumes"][0]
    mount = container_of(found)["volumeMounts"][0]
    assert volume["persistentVolumeClaim"] == {"claimName": "claim"}
    assert mount == {"name": volume["name"], "mountPath": "/runs"}
    assert "--run_dir=/runs/tfgpu" in flags_of(found)[1]


def test_resources_are_requested(capsys):
    found = manifest(capsys, gpus=8, cpus=16, memory="64Gi")
    assert container_of(found)["resources"] == {
        "requests": {"cpu": 16, "memory": "64Gi"},
        "limits": {"memory": "64Gi", "nvidia.com/gpu": 8},
    }


def test_nothing_is_requested_unasked(capsys):
    assert "resources" not in container_of(manifest(capsys))


def test_the_pods_run_the_command_over_several_machines(capsys):
    _, behind = flags_of(manifest(capsys, "train", "--dataset=cifar10"))
    assert behind[0] == "train"
    assert {"--strategy=multi_worker_mirrored", "--dataset=cifar10"} <= set(behind)


def test_the_file_is_written_whole(tmp_path, capsys):
    path = tmp_path / "new" / "jobset.yaml"
    config = settings(manifest=str(path))
    kubernetes.write(config, commands.read(config, ["train"]))
    assert yaml.safe_load(path.read_text())["kind"] == "JobSet"
    assert [file.name for file in path.parent.iterdir()] == ["jobset.yaml"]
    assert str(path) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "more", "said"),
    [
        (["train", "--run_dir=runs/a"], {}, "--run_dir=runs/a"),
        (["train", "--run_dir=/runs/../a"], {}, "/runs"),
        (["train", "--resume=never"], {"max_restarts": 1}, "--resume=never"),
    ],
)
def test_a_run_that_would_be_lost_is_refused(argv, more, said):
    config = settings(**more)
    with pytest.raises(RequestError) as refused:
        kubernetes.write(config, commands.read(config, argv))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"image": None}, "--image is missing"),
        ({"shared_volume": None}, "--shared_volume is missing"),
        ({"name": "Mine"}, "--name=Mine"),
        ({"name": "a" * 41}, "at most 40"),
        ({"memory": "64GB"}, "--memory=64GB"),
        ({"token_secret": "a b"}, "--token_secret"),
        ({"backend": "local"}, "--image"),
    ],
)
def test_impossible_settings_are_refused(more, said):
    with pytest.raises(RequestError) as refused:
        settings(**more)
    assert said in str(refused.value)


@pytest.mark.parametrize("index", [None, "", "3", "x"])
def test_a_pod_without_a_place_is_refused(index):
    pod = LaunchSettings(backend="kubernetes_pod", workers=3)
    variables = {} if index is None else {"JOB_COMPLETION_INDEX": index}
    with pytest.raises(RequestError, match="JOB_COMPLETION_INDEX"):
        kubernetes.find(variables, pod)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(kubernetes.importlib.util, "find_spec", lambda name: None)
    config = settings()
    with pytest.raises(RequestError, match=r"tfgpu\[kubernetes\]"):
        kubernetes.write(config, commands.read(config, ["train"]))
