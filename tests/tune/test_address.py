"""The variables that say which part of a search a process plays."""

import pytest

from tfgpu.errors import RequestError
from tfgpu.tune import address

CHIEF = {
    "KERASTUNER_TUNER_ID": "chief",
    "KERASTUNER_ORACLE_IP": "10.0.0.1",
    "KERASTUNER_ORACLE_PORT": "8000",
}


def test_without_variables_it_is_a_search_of_this_machine_alone():
    role = address.read({})
    assert role.chief and role.alone


def test_the_chief_and_a_worker_are_told_as_by_kerastuner():
    chief = address.read(CHIEF)
    worker = address.read(CHIEF | {"KERASTUNER_TUNER_ID": "box-2"})
    assert chief.chief and not worker.chief
    assert (worker.name, worker.ip, worker.port) == ("box-2", "10.0.0.1", 8000)


@pytest.mark.parametrize("missing", sorted(CHIEF))
def test_a_part_of_the_variables_is_refused(missing):
    given = {name: value for name, value in CHIEF.items() if name != missing}
    with pytest.raises(RequestError, match=f"{missing} is not set"):
        address.read(given)


@pytest.mark.parametrize("port", ["http", "0", "65536", "-1"])
def test_a_port_that_is_none_is_refused(port):
    with pytest.raises(RequestError, match=f"KERASTUNER_ORACLE_PORT={port}"):
        address.read(CHIEF | {"KERASTUNER_ORACLE_PORT": port})
