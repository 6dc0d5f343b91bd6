"""Nothing under an emulator can become `measured`."""

from __future__ import annotations

import pytest

from host.errors import DeviceError
from host.provenance import device_provenance, numerics_provenance
from protos import agent_pb2 as pb
from quant.figures import Provenance


def test_only_outright_silicon_is_measured():
    for value in pb.Substrate.values():
        description = pb.Description(substrate=value)
        if value == pb.SILICON:
            assert device_provenance(description) is Provenance.MEASURED
        elif value == pb.EMULATED:
            assert device_provenance(description) is Provenance.EMULATED_DEVICE
            assert numerics_provenance(description) is Provenance.HTP_EMULATOR
        else:
            with pytest.raises(DeviceError, match="does not say"):
                device_provenance(description)


def test_an_agent_that_says_nothing_is_refused():
    with pytest.raises(DeviceError):
        device_provenance(pb.Description())


def test_a_substrate_of_a_newer_agent_is_refused():
    with pytest.raises(DeviceError):
        device_provenance(pb.Description(substrate=7))  # type: ignore[arg-type]


def test_silicon_with_an_emulation_basis_is_refused():
    with pytest.raises(DeviceError, match="cannot be trusted"):
        device_provenance(pb.Description(substrate=pb.SILICON, emulation_basis="a model"))
