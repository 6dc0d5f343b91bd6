"""What a shell's answers mean for measurements: from answers of the shape that phones give."""

from __future__ import annotations

import json

import pytest

from host import first_contact
from host.doctor import Check

NOW = 1_760_000_000.0
PHONE = """== seccomp
Seccomp:\t0
== page_size
16384
== dsp
crw-rw-r-- 1 system system 10, 90 2025-01-01 00:00 /dev/fastrpc-cdsp
crw-rw-r-- 1 system system 10, 91 2025-01-01 00:00 /dev/adsprpc-smd
== selinux
Enforcing
== space
Filesystem     1K-blocks     Used Available Use% Mounted on
/dev/block/dm-9 230000000 30000000 200000000  14% /data/user/0
== clock
1760000003
== kernel
6.6.50-android15
== machine
aarch64
== abi
arm64-v8a
== user
uid=2000(shell) gid=2000(shell) context=u:r:shell:s0
== soc_id
557
== run
runs
== nodes
ok /sys/class/power_supply/battery/current_now -312500
ok /sys/class/thermal/thermal_zone4/temp 41200
ok /sys/class/thermal/thermal_zone9/temp 33000
no /sys/class/thermal/thermal_zone12/temp
no /sys/class/kgsl/kgsl-3d0/gpuclk
== zones
/sys/class/thermal/thermal_zone4/ nsphmx-0
/sys/class/thermal/thermal_zone9/ skin-msm-therm
/sys/class/thermal/thermal_zone12/ xo-therm
== switches
== energy
== end
"""


def found(answer: str, *, android: bool = True, emulated: bool = False) -> dict[str, Check]:
    facts = first_contact.sections(answer)
    checks = first_contact.checks(facts, NOW, android=android, emulated=emulated)
    return {check.name: check for check in checks}


def test_a_phone_that_has_what_it_takes():
    checks = found(PHONE)
    assert {name: check.ok for name, check in checks.items()} == dict.fromkeys(checks, True)
    words = {name: check.found for name, check in checks.items()}
    assert words["SoC"] == "sm8650, Hexagon v75 (soc_id 557)"
    assert words["page size"] == "16384" and words["SELinux"] == "Enforcing"
    assert words["DSP nodes"] == "/dev/fastrpc-cdsp, /dev/adsprpc-smd"
    assert words["free space"].startswith("204.8 GB") and words["clock"] == "+3 s against this host"
    assert words["power"] == "battery current"
    assert words["temperature"] == "2 zones, 1 of the NPU, 1 of the skin"


@pytest.mark.parametrize(
    ("change", "name", "ok", "words"),
    [
        (("Seccomp:\t0", "Seccomp:\t2"), "seccomp", None, "a filter is on"),
        (("16384", "131072"), "page size", False, "131072"),
        (("/dev/", "/nodes/"), "DSP nodes", False, "none visible"),
        (("200000000  14%", "300000  99%"), "free space", False, "0.3 GB"),
        (("1760000003", "1760003600"), "clock", False, "+3600 s"),
        (("1760000003", "?"), "clock", None, "unknown"),
        (("arm64-v8a", "armeabi-v7a"), "processor", False, "aarch64 armeabi-v7a"),
        (("\n557\n", "\n9999\n"), "SoC", False, "soc_id 9999"),
        (("== run\nruns", "== run\n"), "programs", False, "may not be started"),
        (("Enforcing", ""), "SELinux", None, "none"),
        (("current_now", "other"), "power", None, "nothing"),
        (("skin-msm-therm", "other"), "temperature", None, "0 of the skin"),
    ],
)
def test_each_thing_that_can_be_amiss(change, name, ok, words):
    before, after = change
    assert before in PHONE
    checks = found(PHONE.replace(before, after))
    assert checks[name].ok is ok and words in checks[name].found and checks[name].fix != ""
    assert [n for n, check in checks.items() if check.ok is not True] == [name]


def test_a_hidden_soc_id_is_made_up_for_by_the_property():
    hidden = PHONE.replace("\n557\n", "\n\n")
    assert found(hidden)["SoC"].ok is False
    named = found(hidden.replace("== run", "== soc_model\nSM8650\n== run"))["SoC"]
    assert named.ok and named.found == "sm8650, Hexagon v75 (soc_id hidden)"


def test_a_board_is_asked_for_its_processor_not_for_androids_abi():
    board = PHONE.replace("arm64-v8a", "")
    assert found(board, android=False)["processor"].ok
    assert found(board)["processor"].ok is False


def test_sensors_say_what_they_are_and_whether_they_may_be_read():
    facts = first_contact.sections(PHONE)
    by_node = {sensor.node: sensor for sensor in first_contact.sensors(facts)}
    npu = by_node["/sys/class/thermal/thermal_zone4/temp"]
    assert (npu.kind, npu.readable, npu.value) == ("nsphmx-0", True, "41200")
    refused = by_node["/sys/class/thermal/thermal_zone12/temp"]
    assert (refused.kind, refused.readable, refused.value) == ("xo-therm", False, "")
    assert by_node["/sys/class/power_supply/battery/current_now"].kind == ""


def test_an_answer_that_broke_off_has_no_end():
    assert "end" not in first_contact.sections(PHONE.partition("== nodes")[0])
    assert first_contact.sections("") == {}


def test_the_report_is_kept_by_serial_and_build(tmp_path):
    report = first_contact.CapabilityReport(
        "127.0.0.1:5", "2025-01-01", "Phone", "sm8650", "A1", "android", False,
        (Check("SoC", True, "sm8650"),), (), {"soc_id": "557"},
    )  # fmt: skip
    assert first_contact.known_build(report.serial, tmp_path) is None
    path = first_contact.keep(report, tmp_path)
    assert path == tmp_path / "devices/127.0.0.1_5.json"
    said = json.loads(path.read_text())
    assert said["format"] == 1 and said["checks"][0]["name"] == "SoC"
    assert first_contact.known_build(report.serial, tmp_path) == "A1"
    path.write_text("{")
    assert first_contact.known_build(report.serial, tmp_path) is None
