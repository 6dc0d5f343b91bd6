"""The Snapdragon parts an agent knows: what it finds in soc_id, and what an emulated one shows.

The host's table (quant/htp/soc.toml) names the sources; a test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Soc:
    """soc_model: QNN's number. soc_ids: /sys/devices/soc0/soc_id. Zones: thermal zone types."""

    name: str
    soc_model: int
    htp_arch: int
    soc_ids: tuple[int, ...]
    skin_zone: str
    npu_zones: tuple[str, ...]


_NSPSS = ("nspss-0", "nspss-1", "nspss-2")
_NSP_SM8650 = ("nsphvx-0", "nsphvx-1", "nsphmx-0", "nsphmx-1", "nsphmx-2", "nsphmx-3")
_NSP_SM8750 = ("nsphvx-0", "nsphvx-1", "nsphvx-2", *_NSP_SM8650[2:])
_SKIN = "skin-msm-therm"
SOCS: dict[str, Soc] = {
    "sm8350": Soc("Snapdragon 888", 30, 68, (439,), _SKIN, _NSPSS),
    "sm8450": Soc("Snapdragon 8 Gen 1", 36, 69, (457, 480, 482), _SKIN, _NSPSS),
    "sm8475": Soc("Snapdragon 8+ Gen 1", 42, 69, (530, 531, 540), _SKIN, _NSPSS),
    "sm8550": Soc(
        "Snapdragon 8 Gen 2", 43, 73, (519, 536, 600, 601, 603, 604), _SKIN, (*_NSPSS, "nspss-3")
    ),
    "sm8650": Soc("Snapdragon 8 Gen 3", 57, 75, (557, 577, 696), _SKIN, _NSP_SM8650),
    "sm8750": Soc("Snapdragon 8 Elite", 69, 79, (618, 639), "sys-therm-2", _NSP_SM8750),
    "sm8850": Soc("Snapdragon 8 Elite Gen 5", 87, 81, (660,), "sys-therm-2", _NSP_SM8750),
    "qcs6490": Soc("Dragonwing QCS6490 (RB3 Gen 2)", 93, 68, (497, 498), "quiet-therm", _NSPSS[:2]),
}


def by_soc_id(soc_id: int) -> str | None:
    """The part with this soc_id, or None."""
    return next((name for name, soc in SOCS.items() if soc_id in soc.soc_ids), None)
