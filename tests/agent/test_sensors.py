"""Sensors on recorded-shape trees: the quirks that real devices have, one test each."""

from __future__ import annotations

import errno
import os
import pickle
import re
from pathlib import Path

import pytest

from agent import fingerprint
from agent.platform import Watch
from agent.sensors import discover, dumpsys, power, thermal
from agent.sensors.channel import FileChannel
from agent.sensors.system import ProcessMemory, process_memory
from protos import agent_pb2 as pb


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def readings(channels) -> dict[str, float | None]:
    found = {}
    for channel in channels:
        channel.open()
        found[channel.spec.name] = channel.read()
        channel.close()
    return found


def gauge(root, current, status="Discharging", **more):
    base = "sys/class/power_supply/battery"
    files = {"current_now": current, "voltage_now": "3912000", "status": status} | more
    return write(root, {f"{base}/{name}": str(text) for name, text in files.items()})


# --- Battery -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("current", "status", "milliamperes", "method"),
    [
        (-412_000, "Discharging", 412.0, "uA, negative = discharging"),  # the kernel's ABI
        (412_000, "Discharging", 412.0, "uA, positive = discharging"),  # inverted: Poco F1
        (-412, "Discharging", 412.0, "mA, negative = discharging"),  # Samsung
        (412, "Discharging", 412.0, "mA, positive = discharging"),
        (1_500_000, "Charging", -1500.0, "uA, negative = discharging"),
        (-1500, "Charging", -1500.0, "mA or uA by size, positive = discharging"),
    ],
)
def test_current_unit_and_sign_are_detected_and_said(
    tmp_path, current, status, milliamperes, method
):
    channels = power.battery(gauge(tmp_path, current, status))
    assert readings(channels)["battery_current"] == pytest.approx(milliamperes)
    spec = next(c.spec for c in channels if c.spec.name == "battery_current")
    assert (spec.kind, spec.unit, spec.site) == (pb.CURRENT, "mA", "battery")
    assert method in spec.method


def test_the_detected_scale_holds_when_the_charger_comes_later(tmp_path):
    channels = power.battery(gauge(tmp_path, -412_000))
    gauge(tmp_path, 900_000, "Charging")
    values = readings(channels)
    assert values["battery_current"] == pytest.approx(-900.0)
    assert values["battery_status"] == 1.0


@pytest.mark.parametrize(("full", "status"), [(0, "Full"), (5_000, "Charging"), (-40, "Full")])
def test_a_full_battery_does_not_decide_the_unit(tmp_path, full, status):
    """5,000 on the charger is 5 mA or 5 A: only what flows out later shows which."""
    channels = power.battery(gauge(tmp_path, full, status))
    assert "by size" in channels[0].spec.method
    for raw in (412_000, 412):
        gauge(tmp_path, raw, "Discharging")
        assert abs(readings(channels)["battery_current"]) == pytest.approx(412.0)


def test_a_gauge_that_is_busy_when_the_agent_starts_is_asked_again(tmp_path, monkeypatch):
    root = gauge(tmp_path, -412_000)
    node = root / "sys/class/power_supply/battery/current_now"
    text = node.read_text()
    node.write_text("")  # what a file can show of -EAGAIN
    monkeypatch.setattr(power.time, "sleep", lambda seconds: node.write_text(text))
    assert readings(power.battery(root))["battery_current"] == pytest.approx(412.0)


@pytest.mark.parametrize(("raw", "millivolts"), [("3912000", 3912.0), ("3912", 3912.0)])
def test_voltage_in_microvolts_or_millivolts(tmp_path, raw, millivolts):
    channels = power.battery(gauge(tmp_path, -400_000, voltage_now=raw))
    assert readings(channels)["battery_voltage"] == pytest.approx(millivolts)


def test_bogus_power_now_is_never_read(tmp_path):
    """An SM8750 phone said 68 W at rest."""
    channels = power.battery(gauge(tmp_path, -150_000, power_now="68000000"))
    values = readings(channels)
    assert set(values) == {"battery_current", "battery_voltage", "battery_status"}
    milliwatts = values["battery_current"] * values["battery_voltage"] / 1e3
    assert milliwatts == pytest.approx(587, rel=0.01)


@pytest.mark.parametrize(
    ("text", "code"),
    [("Discharging", 0), ("Charging", 1), ("Full", 2), ("Not charging", 3), ("Unknown", 4)],
)
def test_status_codes(text, code):
    assert power.parse_status(text.encode() + b"\n") == code


def test_bms_is_taken_where_battery_has_no_current(tmp_path):
    write(tmp_path, {"sys/class/power_supply/battery/capacity": "80"})
    write(
        tmp_path,
        {
            "sys/class/power_supply/bms/current_now": "-300000",
            "sys/class/power_supply/bms/voltage_now": "4000000",
        },
    )
    assert readings(power.battery(tmp_path))["battery_current"] == 300.0


class FlakyRead:
    """pread of a fuel gauge whose firmware is busy every second time."""

    def __init__(self, error: int) -> None:
        self.error = error
        self.calls = 0

    def __call__(self, fd: int, size: int, offset: int) -> bytes:
        self.calls += 1
        if self.calls % 2:
            raise OSError(self.error, os.strerror(self.error))
        return os.pread(fd, size, offset)


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.ENODATA, errno.ETIMEDOUT, errno.EIO])
def test_a_busy_gauge_gives_no_value_and_then_one(tmp_path, error):
    described = power.battery(gauge(tmp_path, -412_000))[0]
    flaky = FlakyRead(error)
    channel = FileChannel(described.spec, described.path, described._parse, pread=flaky)
    channel.open()
    assert [channel.read() for _ in range(4)] == [None, 412.0, None, 412.0]
    channel.close()


# --- Rails and counters ------------------------------------------------------------------------


def test_hwmon_rails_by_label_with_the_part_they_feed(tmp_path):
    labels = {
        "VDD_NSP": "npu", "vph_pwr": "board", "VDD_APC1": "cpu", "vdd_gfx": "gpu",
        "VDD_DDR": "ddr", "vdd_mx": "soc", "VSYS_PWR_MODEM": "other",
    }  # fmt: skip
    for i, label in enumerate(labels):
        write(
            tmp_path,
            {
                f"sys/class/hwmon/hwmon{i}/power1_input": str(1_234_000 + i),
                f"sys/class/hwmon/hwmon{i}/power1_label": label,
            },
        )
    channels = power.rails(tmp_path)
    assert {c.spec.name: c.spec.site for c in channels} == labels
    assert readings(channels)["VDD_NSP"] == pytest.approx(1234.0)
    assert all(c.spec.unit == "mW" and c.spec.kind == pb.POWER for c in channels)


def test_hwmon_without_power_is_no_rail(tmp_path):
    write(tmp_path, {"sys/class/hwmon/hwmon0/temp1_input": "41000"})
    assert power.rails(tmp_path) == []


def test_iio_energy_in_one_file_per_rail(tmp_path):
    write(
        tmp_path,
        {
            "sys/bus/iio/devices/iio:device0/name": "ina231",
            "sys/bus/iio/devices/iio:device0/energy0_value": "5000000",
        },
    )
    (channel,) = power.energy_counters(tmp_path)
    assert readings([channel]) == {"ina231_energy0": 5000.0}
    assert (channel.spec.kind, channel.spec.unit) == (pb.ENERGY, "mJ")


def test_iio_energy_of_all_rails_in_one_file(tmp_path):
    text = "t=8162\nCH0(T=8162)[S10M_VDD_TPU], 66123\nCH1(T=8162)[VSYS_PWR_MODEM], 1500"
    write(tmp_path, {"sys/bus/iio/devices/iio:device1/energy_value": text})
    channels = power.energy_counters(tmp_path)
    assert readings(channels) == {"S10M_VDD_TPU": 66.123, "VSYS_PWR_MODEM": 1.5}


IPOWERSTATS = """
============= PowerStats HAL 2.0 energy consumers ==============
                   TPU            9999.00 mWs
========== End of PowerStats HAL 2.0 energy consumers ==========

============= PowerStats HAL 2.0 energy meter ==============
                           Channel    Cumulative Energy
               [S7M_VDD_TPU]:TPU          1234.50 mWs
              [S2M_VDD_CPUCL2]:CPU          100.25 mWs
========== End of PowerStats HAL 2.0 energy meter ==========
"""


def test_energy_meter_of_ipowerstats_and_not_its_consumers():
    asked = []

    def run(argv):
        asked.append(tuple(argv))
        return IPOWERSTATS

    channels = dumpsys.energy_meters(run)
    assert {c.spec.name: c.spec.site for c in channels} == {
        "S7M_VDD_TPU": "other", "S2M_VDD_CPUCL2": "cpu",
    }  # fmt: skip
    asked.clear()
    assert readings(channels) == {"S7M_VDD_TPU": 1234.5, "S2M_VDD_CPUCL2": 100.25}
    assert asked == [dumpsys.POWER_STATS]  # one dump for both


@pytest.mark.parametrize("answer", [None, "", "Can't find service: android.hardware.power.stats"])
def test_a_phone_without_energy_meter_has_no_such_channel(answer):
    assert dumpsys.energy_meters(lambda argv: answer) == []


# --- Heat --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "site"),
    [
        ("nspss-0", "npu"), ("nsphvx-1", "npu"), ("nsphmx-3", "npu"), ("cpu-1-2-0", "cpu"),
        ("cpuss-0", "cpu"), ("gpuss-7", "gpu"), ("ddr", "ddr"), ("skin-msm-therm", "skin"),
        ("sys-therm-2", "skin"), ("quiet-therm", "skin"), ("battery", "battery"),
        ("xo-therm", "board"),
        ("pm8550b-ibat-lvl0", None), ("pm8550b-bcl-lvl1", None), ("vbat", None), ("socd", None),
        ("pm8550-ibat-lvl1", None), ("pmr735d_k_tz", None), ("modem-ss-0", None),
    ],
)  # fmt: skip
def test_zones_are_classified_by_type(zone, site):
    assert thermal.classify(zone) == site


def zone(index: int, zone_type: str, temp: object) -> dict[str, str]:
    base = f"sys/class/thermal/thermal_zone{index}"
    return {f"{base}/type": zone_type, f"{base}/temp": str(temp)}


def test_bcl_zones_never_become_temperatures(tmp_path):
    write(
        tmp_path,
        zone(0, "pm8550b-ibat-lvl0", 3200) | zone(1, "vbat", 4011) | zone(2, "socd", 93)
        | zone(3, "skin-msm-therm", 33_500),
    )  # fmt: skip
    assert readings(thermal.zones(tmp_path)) == {"skin-msm-therm": 33.5}


def test_a_powered_down_block_gives_no_value_until_it_wakes(tmp_path):
    write(tmp_path, zone(0, "nsphmx-0", -273_000))
    (channel,) = thermal.zones(tmp_path)
    channel.open()
    assert channel.read() is None
    write(tmp_path, zone(0, "nsphmx-0", 41_200))
    assert channel.read() == 41.2
    channel.close()


@pytest.mark.parametrize(("raw", "celsius"), [(31, 31.0), (31_400, 31.4), (-5, -5.0)])
def test_the_battery_zone_in_degrees_or_millidegrees(tmp_path, raw, celsius):
    write(tmp_path, zone(0, "battery", raw))
    assert readings(thermal.zones(tmp_path)) == {"battery": celsius}


def test_the_npus_cooling_devices_tell_throttling(tmp_path):
    files = {}
    for i, (name, state) in enumerate((("cpu-hotplug1", 1), ("cdsp_sw", 2), ("cdsp_hw", 0))):
        files[f"sys/class/thermal/cooling_device{i}/type"] = name
        files[f"sys/class/thermal/cooling_device{i}/cur_state"] = str(state)
    channels = thermal.cooling(write(tmp_path, files))
    assert readings(channels) == {"cdsp_sw": 2.0, "cdsp_hw": 0.0}
    assert {(c.spec.kind, c.spec.site) for c in channels} == {(pb.STATE, "npu")}
    assert Watch(channels).throttling()
    write(tmp_path, {"sys/class/thermal/cooling_device1/cur_state": "0"})
    assert not Watch(channels).throttling()


def test_zone_order_is_numeric_so_that_ids_are_stable(tmp_path):
    files = {}
    for i in (10, 2, 1):
        files |= zone(i, f"cpuss-{i}", 40_000)
    names = [c.spec.name for c in thermal.zones(write(tmp_path, files))]
    assert names == ["cpuss-1", "cpuss-2", "cpuss-10"]


THERMALSERVICE = """IsStatusOverride: false
Thermal Status: 2
Cached temperatures:
\tTemperature{mValue=99.0, mType=3, mName=SKIN, mStatus=3}
HAL Ready: true
Current temperatures from HAL:
\tTemperature{mValue=57.9, mType=0, mName=CPU0, mStatus=0}
\tTemperature{mValue=44.25, mType=9, mName=nsp0, mStatus=0}
\tTemperature{mValue=36.2, mType=3, mName=SKIN, mStatus=1}
\tTemperature{mValue=4011.0, mType=6, mName=vbat, mStatus=0}
\tTemperature{mValue=NaN, mType=1, mName=GPU0, mStatus=0}
Current cooling devices from HAL:
\tCoolingDevice{mValue=0, mType=1, mName=fan}
Temperature static thresholds from HAL:
"""


def test_thermalservice_gives_the_hals_temperatures_and_not_the_cached_ones():
    assert dumpsys.parse_temperatures(THERMALSERVICE) == {
        "CPU0": ("cpu", 57.9), "nsp0": ("npu", 44.25), "SKIN": ("skin", 36.2),
    }  # fmt: skip
    assert dumpsys.parse_thermal_status(THERMALSERVICE) == 2.0


def test_thermalservice_stands_in_for_denied_zones_only(tmp_path):
    def run(argv):
        return THERMALSERVICE if tuple(argv) == dumpsys.THERMAL else None

    without = discover(tmp_path / "a", run=run)
    assert readings(without.channels) == {
        "thermal_status": 2.0, "CPU0": 57.9, "nsp0": 44.25, "SKIN": 36.2,
    }  # fmt: skip
    write(tmp_path / "b", zone(0, "nsphmx-0", 41_000))
    names = [c.spec.name for c in discover(tmp_path / "b", run=run).channels]
    assert names == ["nsphmx-0", "thermal_status"]


# --- Clocks and memory -------------------------------------------------------------------------


def test_clocks_in_megahertz_from_their_different_units(tmp_path):
    write(
        tmp_path,
        {
            "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "2016000",
            "sys/class/kgsl/kgsl-3d0/gpuclk": "680000000",
            "sys/devices/system/cpu/bus_dcvs/DDR/cur_freq": "2092000",
        },
    )
    assert readings(discover(tmp_path).channels) == {
        "cpu_policy0": 2016.0, "gpu_clock": 680.0, "ddr_clock": 2092.0,
    }  # fmt: skip
    write(
        tmp_path,
        {
            "sys/class/devfreq/soc:cdsp/cur_freq": "1200000000",
            "sys/class/devfreq/soc:qcom,cdsp-cdsp-l3-lat/cur_freq": "1593600000",
            "sys/class/devfreq/1d84000.ufshc/cur_freq": "300000000",
        },
    )
    channels = {c.spec.name: c for c in discover(tmp_path).channels}
    assert readings([channels["soc:cdsp"]]) == {"soc:cdsp": 1200.0}
    assert channels["soc:cdsp"].spec.site == "npu"
    assert not any("l3" in name or "ufs" in name for name in channels)


def test_memory_counts_resident_pages_and_every_dma_buffer_once(tmp_path):
    buffer = "pos:\t0\nflags:\t02\nino:\t{ino}\nsize:\t{size}\ncount:\t3\nexp_name:\tqcom,system"
    write(
        tmp_path,
        {
            "proc/meminfo": "MemTotal: 11000000 kB\nMemAvailable:   7000000 kB",
            "proc/99/smaps_rollup": "5500-7fff ---p 0 0 0 [rollup]\nRss: 9 kB\nPss:    2048 kB",
            "proc/99/fdinfo/5": buffer.format(ino=71, size=4096),
            "proc/99/fdinfo/6": buffer.format(ino=71, size=4096),  # a duplicate descriptor
            "proc/99/fdinfo/7": buffer.format(ino=72, size=1_000_000),
            "proc/99/fdinfo/8": "pos:\t0\nflags:\t02\nino:\t9\nsize:\t55",  # no dma-buf
        },
    )
    assert readings(discover(tmp_path).channels) == {"memory_available": 7_000_000 * 1024}
    # No high-water mark can be read here, so the peak is what is there now.
    assert process_memory(tmp_path, 99) == ProcessMemory(2048 * 1024, 2048 * 1024, 1_004_096)
    write(tmp_path, {"proc/99/status": "Name:\tx\nVmHWM:\t    9000 kB"})
    assert process_memory(tmp_path, 99) == ProcessMemory(2048 * 1024, 9000 * 1024, 1_004_096)
    assert process_memory(tmp_path, 98) is None


def test_fingerprint_of_a_phone(tmp_path):
    write(
        tmp_path,
        {
            "sys/devices/soc0/soc_id": "557",
            "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "walt",
            "sys/devices/system/cpu/cpufreq/policy7/scaling_governor": "performance",
            "sys/class/power_supply/battery/capacity": "76",
            "sys/power/wake_lock": "qhost-1",
        },
    )
    answers = {
        ("dumpsys", "power"): "POWER MANAGER\n  mWakefulness=Asleep\n  mIsPowered=false",
        ("settings", "get", "global", "airplane_mode_on"): "1\n",
        ("settings", "get", "global", "wifi_on"): "0\n",
        dumpsys.THERMAL: THERMALSERVICE,
    }
    facts = fingerprint.read(tmp_path, lambda argv: answers.get(tuple(argv)))
    expected = {
        "soc_id": "557", "governor": "performance,walt", "charge_percent": "76",
        "wake_locks": "qhost-1", "screen": "Asleep", "airplane_mode": "1", "wifi": "0",
        "thermal_status": "2",
    }  # fmt: skip
    assert {k: v for k, v in facts.items() if k in expected} == expected
    assert "bluetooth" not in facts  # no answer, no fact


def test_fingerprint_names_the_libraries_by_content():
    hashes = fingerprint.of_package()
    assert "sha256 libQnnHtp.so" in hashes
    assert re.fullmatch(r"2\.\d+\.\d+\.\d{6,14}", hashes.pop("qairt"))
    assert all(len(value) == 16 and int(value, 16) >= 0 for value in hashes.values())


# --- Discovery ---------------------------------------------------------------------------------


def test_denied_nodes_are_left_out_and_reported(tmp_path):
    files = zone(0, "nsphmx-0", 41_000) | zone(1, "skin-msm-therm", 33_000)
    write(tmp_path, files | {"sys/class/kgsl/kgsl-3d0/gpuclk": "1"})
    (tmp_path / "sys/class/thermal/thermal_zone0/temp").chmod(0)
    (tmp_path / "sys/class/kgsl/kgsl-3d0/gpuclk").chmod(0)
    found = as_nobody(lambda: describe(tmp_path), tmp_path)
    assert found == (
        ["skin-msm-therm"],
        ["/sys/class/thermal/thermal_zone0/temp", "/sys/class/kgsl/kgsl-3d0/gpuclk"],
    )


def describe(root: Path):
    discovery = discover(root)
    return [c.spec.name for c in discovery.channels], list(discovery.denied)


def as_nobody(work, folder: Path):
    """What `work` returns in a child process without root's right to read everything."""
    if os.geteuid() != 0:
        return work()
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == 0 and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setuid(65534)
            os.write(writer, pickle.dumps(work()))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    return pickle.loads(data)


def test_nothing_readable_gives_no_channels_and_no_error(tmp_path):
    assert discover(tmp_path).channels == ()


def test_channels_travel_to_the_samplers_process(tmp_path):
    write(
        tmp_path,
        zone(0, "nsphmx-0", 41_000) | zone(1, "battery", 30)
        | {"proc/meminfo": "MemAvailable: 5 kB"},
    )  # fmt: skip
    gauge(tmp_path, -412_000)
    write(tmp_path, {"sys/class/hwmon/hwmon0/power1_input": "5000"})
    channels = discover(tmp_path).channels
    assert readings(pickle.loads(pickle.dumps(channels))) == readings(channels)
