"""Host and agent of different protocol versions refuse each other, naming both."""

from __future__ import annotations

import pytest

from host import client, devices
from host.errors import DeviceError


@pytest.fixture
def emulator():
    with devices.LocalEmulator("sm8650") as session:
        yield session


def test_an_agent_refuses_a_host_of_another_version(emulator, monkeypatch):
    monkeypatch.setattr(client, "PROTOCOL_VERSION", 99)
    other = client.AgentClient(emulator.client.address, emulator.token)
    try:
        with pytest.raises(DeviceError) as caught:
            other.describe()
    finally:
        other.close()
    assert "99" in caught.value.message
    assert "1" in caught.value.message.replace("99", "")


def test_a_host_refuses_an_agent_of_another_version(monkeypatch):
    monkeypatch.setattr(devices, "PROTOCOL_VERSION", 99)
    monkeypatch.setattr(client, "PROTOCOL_VERSION", 99)
    with pytest.raises(DeviceError, match="version 1, this host version 99"):
        devices.LocalEmulator("sm8650")


def test_without_the_token_nothing_is_told(emulator):
    other = client.AgentClient(emulator.client.address, "wrong")
    try:
        with pytest.raises(DeviceError, match="refused the session token"):
            other.describe()
    finally:
        other.close()


def test_the_emulated_device_describes_itself_as_emulated(emulator):
    assert emulator.info.emulated
    assert emulator.info.label == "emulated:sm8650"
    assert (emulator.info.soc_model, emulator.info.htp_arch) == (57, 75)
    assert {c.kind for c in emulator.info.channels} >= {"power", "temperature", "frequency"}
