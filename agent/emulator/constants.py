"""Every constant of the emulated Snapdragon, in one place, with its reason.

None of these was measured on a phone. They are chosen so that a device model behaves like the
devices that public teardowns, kernel device trees and data sheets describe: 2-6 W under an NPU
load, a skin that warms over minutes and junctions that warm in seconds, and a governor that
slows the clocks when the skin gets warm. Figures made from them are labelled `emulated_device`.
"""

from __future__ import annotations

BASIS = (
    "device model: latency from the compiler's figures, power from activity, "
    "RC thermal network with throttling; constants in agent/emulator/constants.py"
)

BUILD = "qhost-emulated-1"

# --- Power, milliwatts. Idle: screen off, radios off, a development board's rails.
RAILS = ("vdd_npu", "vdd_cpu", "vdd_gpu", "vdd_ddr", "vdd_soc")
BOARD_RAIL = "vph_pwr"  # the whole device: the rails through the regulators, and the board
IDLE_MW = {"vdd_npu": 8.0, "vdd_cpu": 95.0, "vdd_gpu": 6.0, "vdd_ddr": 70.0, "vdd_soc": 160.0}
BOARD_MW = 140.0  # regulators' own use, storage, always-on parts
REGULATOR_EFFICIENCY = 0.90  # typical for buck converters at these loads
# NPU while inferring at full clock: what the clocked array costs whatever it computes, ...
NPU_ACTIVE_MW = 620.0
NPU_HVX_MW = 900.0  # ... the vector threads at full share of the time, ...
# ... and the matrix unit per MAC: 4 nm class int8 arrays are published at 0.2-0.5 pJ per MAC
# including operand movement in local memory.
MAC_PJ = 0.35
NPU_CEILING_MW = 7_500.0  # the rail's current limit
DDR_PJ_PER_BYTE = 45.0  # LPDDR5X and its PHY: about 5-6 pJ per bit
DDR_ACTIVE_MW = 110.0
CPU_POLLING_MW = 330.0  # one core waits for the DSP (rpc polling of the burst profile)
SOC_ACTIVE_MW = 90.0  # the interconnect leaves its lowest clock
LOAD_MW = {"vdd_cpu": 1_100.0, "vdd_ddr": 260.0, "vdd_soc": 120.0, "vdd_npu": 90.0, "vdd_gpu": 0.0}

# --- Clock of the NPU relative to its highest, by the HTP's performance profile.
PROFILE_CLOCK = {
    "burst": 1.0,
    "high_performance": 0.96,
    "sustained_high_performance": 0.90,
    "default": 0.80,
    "balanced": 0.72,
    "low_balanced": 0.60,
    "high_power_saver": 0.52,
    "power_saver": 0.45,
    "low_power_saver": 0.36,
    "extreme_power_saver": 0.28,
}
NPU_CLOCK_HZ = 1_000_000_000  # full clock as the files show it: a round number, not Qualcomm's
# Dynamic power goes with f * V^2, and the voltage falls with the clock: P ~ f^2.2 at a fixed work
# rate per clock is what published operating points of mobile cores fit.
POWER_EXPONENT = 2.2

# --- Heat. Conductances in W/K, capacities in J/K; junctions to board, board to skin, skin to air.
# The ambient temperature belongs to the personality (24 C by default).
JUNCTION_G = 0.22  # 4.5 K/W from junction to board
JUNCTION_C = 0.35  # about 1.6 s
BOARD_SKIN_G = 0.50
BOARD_C = 28.0
SKIN_AIR_G = 0.16  # 6.3 K/W: a handset on a desk
SKIN_C = 45.0  # with the line above about 280 s
BATTERY_BOARD_G = 0.12
BATTERY_C = 55.0

# --- Governor: skin thresholds as in SM8550/8650 thermal configurations (light 36.5, moderate 40,
# severe 46.5, critical 50), junction limit 95 C; the clock falls one step per threshold.
GOVERNOR_NS = 100_000_000
SKIN_STEPS_C = (40.0, 43.0, 46.5, 50.0)
JUNCTION_LIMIT_C = 95.0
STEP_CLOCK = (1.0, 0.85, 0.70, 0.55, 0.40)
HYSTERESIS_C = 1.5

# --- Latency noise: scheduling and DDR refresh jitter of a tight loop, and rare preemption.
LATENCY_SIGMA = 0.012
BLOCK_SIGMA = 0.006  # blocks differ from one another by more than their own noise explains
PREEMPTION_SHARE = 0.004
PREEMPTION_FACTOR = 1.25
FIRST_INFERENCE_FACTOR = 1.6  # cold caches and clocks
FIRST_INFERENCE_S = 0.0025
# Where the manifest's device_model lacks load_s or memory_bytes:
LOAD_COLD_S = 0.12
LOAD_BYTES_PER_S = 450e6
LOAD_WARM_SHARE = 0.45
RUNTIME_MEMORY_BYTES = 38_000_000

# --- Battery and sensors.
BATTERY_MAH = 5_000.0
BATTERY_START_PERCENT = 82.0
BATTERY_OHM = 0.055
BATTERY_EMPTY_MV, BATTERY_FULL_MV = 3_450.0, 4_420.0
CHARGER_MW = 7_500.0  # what a USB port gives a plugged phone
# Readings jitter even at constant power, which is what shows that they are new ones.
RAIL_NOISE = 0.004
GAUGE_NOISE = 0.002
MEMORY_TOTAL_BYTES = 12 << 30
MEMORY_AVAILABLE_BYTES = 7 << 30
CPU_IDLE_KHZ, CPU_BUSY_KHZ = 787_200, 2_054_400
MODEL_PID = 4711
