"""Where a figure comes from, derived from what Describe says; nothing else decides it."""

from __future__ import annotations

from host.errors import DeviceError
from protos import agent_pb2 as pb
from quant.figures import Provenance


def device_provenance(description: pb.Description) -> Provenance:
    """The provenance of every time, power, heat and memory figure of this device.

    `measured` needs the agent's outright SILICON. An agent that says nothing is refused, so that
    no omission on the way (an old agent, a stand-in tool) can turn an emulated figure into a
    measured one.
    """
    if description.substrate == pb.SILICON:
        if description.emulation_basis:
            raise DeviceError(
                "The agent says SILICON and names an emulation basis "
                f"({description.emulation_basis!r}): its figures cannot be trusted.",
                "Redeploy the agent: qhost agent deploy.",
            )
        return Provenance.MEASURED
    if description.substrate == pb.EMULATED:
        return Provenance.EMULATED_DEVICE
    raise DeviceError(
        "The agent does not say whether it runs on silicon or on an emulator.",
        "Redeploy the agent: qhost agent deploy.",
    )


def numerics_provenance(description: pb.Description) -> Provenance:
    """The provenance of outputs the device computed: an emulated one runs the HTP emulator."""
    device = device_provenance(description)
    return Provenance.MEASURED if device is Provenance.MEASURED else Provenance.HTP_EMULATOR
