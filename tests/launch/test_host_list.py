"""Host lists of Slurm are expanded in Slurm's own order."""

import pytest

from tfgpu.launch.host_list import expand, tasks_of_nodes


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        # What `scontrol show hostnames` of Slurm 22.05 prints for each.
        ("login", "login"),
        ("n[2,10]", "n2 n10"),
        ("n[2,9-10],gpu[001-003]", "n2 n9 n10 gpu001 gpu002 gpu003"),
        ("a[1-2]b[3-4]", "a1b3 a1b4 a2b3 a2b4"),
        ("login,n[7,3]", "login n7 n3"),
        ("n[10,2],n1", "n10 n2 n1"),
        ("n[08-11]", "n08 n09 n10 n11"),
        ("n1.example.com,n2.example.com", "n1.example.com n2.example.com"),
    ],
)
def test_a_list_is_expanded_in_its_order(text, hosts):
    assert expand(text) == hosts.split()


@pytest.mark.parametrize(
    "text",
    ["", "a,", "a[", "a]", "a[]", "a[1-]", "a[3-1]", "a[1],,b", "a[x]", "a b", "a[0-999999]"],
)
def test_what_is_no_list_is_refused(text):
    with pytest.raises(ValueError):
        expand(text)


def test_a_list_that_multiplies_beyond_bounds_is_refused():
    with pytest.raises(ValueError, match="too many"):
        expand("a[0-9999]b[0-9999]")


def test_tasks_of_nodes():
    assert tasks_of_nodes("2(x3),1") == [2, 2, 2, 1]
    assert tasks_of_nodes("4") == [4]


@pytest.mark.parametrize("text", ["", "2(x3", "x", "2,,1", "2(x9999999)"])
def test_what_are_no_tasks_is_refused(text):
    with pytest.raises(ValueError):
        tasks_of_nodes(text)
