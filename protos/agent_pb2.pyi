from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Substrate(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SUBSTRATE_UNSPECIFIED: _ClassVar[Substrate]
    SILICON: _ClassVar[Substrate]
    EMULATED: _ClassVar[Substrate]

class ChannelKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CHANNEL_KIND_UNSPECIFIED: _ClassVar[ChannelKind]
    POWER: _ClassVar[ChannelKind]
    CURRENT: _ClassVar[ChannelKind]
    VOLTAGE: _ClassVar[ChannelKind]
    ENERGY: _ClassVar[ChannelKind]
    TEMPERATURE: _ClassVar[ChannelKind]
    FREQUENCY: _ClassVar[ChannelKind]
    MEMORY: _ClassVar[ChannelKind]
    CHARGE: _ClassVar[ChannelKind]
    STATE: _ClassVar[ChannelKind]

class SegmentKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEGMENT_KIND_UNSPECIFIED: _ClassVar[SegmentKind]
    CHECK: _ClassVar[SegmentKind]
    BLOCK: _ClassVar[SegmentKind]
    PROFILE: _ClassVar[SegmentKind]
    EVALUATE: _ClassVar[SegmentKind]
    FOOTPRINT: _ClassVar[SegmentKind]

class Charging(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CHARGING_UNSPECIFIED: _ClassVar[Charging]
    REQUIRE_DISCHARGING: _ClassVar[Charging]
    STOP_CHARGING: _ClassVar[Charging]

class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PHASE_UNSPECIFIED: _ClassVar[Phase]
    IDLE_BEFORE: _ClassVar[Phase]
    COLD_LOAD: _ClassVar[Phase]
    WARM_LOAD: _ClassVar[Phase]
    FIRST_INFERENCE: _ClassVar[Phase]
    GOLDEN: _ClassVar[Phase]
    WARMUP: _ClassVar[Phase]
    TIMED: _ClassVar[Phase]
    IDLE_AFTER: _ClassVar[Phase]
    COOLDOWN: _ClassVar[Phase]

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OK: _ClassVar[Outcome]
    FAILED: _ClassVar[Outcome]
    CANCELLED: _ClassVar[Outcome]
SUBSTRATE_UNSPECIFIED: Substrate
SILICON: Substrate
EMULATED: Substrate
CHANNEL_KIND_UNSPECIFIED: ChannelKind
POWER: ChannelKind
CURRENT: ChannelKind
VOLTAGE: ChannelKind
ENERGY: ChannelKind
TEMPERATURE: ChannelKind
FREQUENCY: ChannelKind
MEMORY: ChannelKind
CHARGE: ChannelKind
STATE: ChannelKind
SEGMENT_KIND_UNSPECIFIED: SegmentKind
CHECK: SegmentKind
BLOCK: SegmentKind
PROFILE: SegmentKind
EVALUATE: SegmentKind
FOOTPRINT: SegmentKind
CHARGING_UNSPECIFIED: Charging
REQUIRE_DISCHARGING: Charging
STOP_CHARGING: Charging
PHASE_UNSPECIFIED: Phase
IDLE_BEFORE: Phase
COLD_LOAD: Phase
WARM_LOAD: Phase
FIRST_INFERENCE: Phase
GOLDEN: Phase
WARMUP: Phase
TIMED: Phase
IDLE_AFTER: Phase
COOLDOWN: Phase
OUTCOME_UNSPECIFIED: Outcome
OK: Outcome
FAILED: Outcome
CANCELLED: Outcome

class DescribeRequest(_message.Message):
    __slots__ = ("protocol_version", "host_version")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    HOST_VERSION_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    host_version: str
    def __init__(self, protocol_version: _Optional[int] = ..., host_version: _Optional[str] = ...) -> None: ...

class Description(_message.Message):
    __slots__ = ("protocol_version", "agent_version", "substrate", "emulation_basis", "device", "channels", "runtimes", "spool_capacity_bytes", "clock_ns", "fingerprint")
    class FingerprintEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    SUBSTRATE_FIELD_NUMBER: _ClassVar[int]
    EMULATION_BASIS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    RUNTIMES_FIELD_NUMBER: _ClassVar[int]
    SPOOL_CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    CLOCK_NS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    agent_version: str
    substrate: Substrate
    emulation_basis: str
    device: DeviceIdentity
    channels: _containers.RepeatedCompositeFieldContainer[Channel]
    runtimes: _containers.RepeatedScalarFieldContainer[str]
    spool_capacity_bytes: int
    clock_ns: int
    fingerprint: _containers.ScalarMap[str, str]
    def __init__(self, protocol_version: _Optional[int] = ..., agent_version: _Optional[str] = ..., substrate: _Optional[_Union[Substrate, str]] = ..., emulation_basis: _Optional[str] = ..., device: _Optional[_Union[DeviceIdentity, _Mapping]] = ..., channels: _Optional[_Iterable[_Union[Channel, _Mapping]]] = ..., runtimes: _Optional[_Iterable[str]] = ..., spool_capacity_bytes: _Optional[int] = ..., clock_ns: _Optional[int] = ..., fingerprint: _Optional[_Mapping[str, str]] = ...) -> None: ...

class DeviceIdentity(_message.Message):
    __slots__ = ("serial", "model", "soc", "soc_model", "htp_arch", "build", "os")
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SOC_FIELD_NUMBER: _ClassVar[int]
    SOC_MODEL_FIELD_NUMBER: _ClassVar[int]
    HTP_ARCH_FIELD_NUMBER: _ClassVar[int]
    BUILD_FIELD_NUMBER: _ClassVar[int]
    OS_FIELD_NUMBER: _ClassVar[int]
    serial: str
    model: str
    soc: str
    soc_model: int
    htp_arch: int
    build: str
    os: str
    def __init__(self, serial: _Optional[str] = ..., model: _Optional[str] = ..., soc: _Optional[str] = ..., soc_model: _Optional[int] = ..., htp_arch: _Optional[int] = ..., build: _Optional[str] = ..., os: _Optional[str] = ...) -> None: ...

class Channel(_message.Message):
    __slots__ = ("id", "name", "site", "kind", "unit", "method", "nominal_rate_hz", "source")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    NOMINAL_RATE_HZ_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    id: int
    name: str
    site: str
    kind: ChannelKind
    unit: str
    method: str
    nominal_rate_hz: float
    source: str
    def __init__(self, id: _Optional[int] = ..., name: _Optional[str] = ..., site: _Optional[str] = ..., kind: _Optional[_Union[ChannelKind, str]] = ..., unit: _Optional[str] = ..., method: _Optional[str] = ..., nominal_rate_hz: _Optional[float] = ..., source: _Optional[str] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AgentStatus(_message.Message):
    __slots__ = ("busy", "run_id", "next_seq", "acked_seq", "spool_bytes", "queued_segments", "clock_ns", "artifacts")
    BUSY_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NEXT_SEQ_FIELD_NUMBER: _ClassVar[int]
    ACKED_SEQ_FIELD_NUMBER: _ClassVar[int]
    SPOOL_BYTES_FIELD_NUMBER: _ClassVar[int]
    QUEUED_SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    CLOCK_NS_FIELD_NUMBER: _ClassVar[int]
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    busy: bool
    run_id: str
    next_seq: int
    acked_seq: int
    spool_bytes: int
    queued_segments: int
    clock_ns: int
    artifacts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, busy: _Optional[bool] = ..., run_id: _Optional[str] = ..., next_seq: _Optional[int] = ..., acked_seq: _Optional[int] = ..., spool_bytes: _Optional[int] = ..., queued_segments: _Optional[int] = ..., clock_ns: _Optional[int] = ..., artifacts: _Optional[_Iterable[str]] = ...) -> None: ...

class ArtifactChunk(_message.Message):
    __slots__ = ("header", "file", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: ArtifactHeader
    file: FileHeader
    data: bytes
    def __init__(self, header: _Optional[_Union[ArtifactHeader, _Mapping]] = ..., file: _Optional[_Union[FileHeader, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ArtifactHeader(_message.Message):
    __slots__ = ("sha256", "total_bytes")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    total_bytes: int
    def __init__(self, sha256: _Optional[str] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class FileHeader(_message.Message):
    __slots__ = ("name", "size", "sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    size: int
    sha256: str
    def __init__(self, name: _Optional[str] = ..., size: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class ArtifactReceipt(_message.Message):
    __slots__ = ("sha256", "already_present")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    ALREADY_PRESENT_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    already_present: bool
    def __init__(self, sha256: _Optional[str] = ..., already_present: _Optional[bool] = ...) -> None: ...

class StartRequest(_message.Message):
    __slots__ = ("session_id", "segments")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    segments: _containers.RepeatedCompositeFieldContainer[Segment]
    def __init__(self, session_id: _Optional[str] = ..., segments: _Optional[_Iterable[_Union[Segment, _Mapping]]] = ...) -> None: ...

class StartReply(_message.Message):
    __slots__ = ("first_seq",)
    FIRST_SEQ_FIELD_NUMBER: _ClassVar[int]
    first_seq: int
    def __init__(self, first_seq: _Optional[int] = ...) -> None: ...

class Segment(_message.Message):
    __slots__ = ("run_id", "artifact", "soc", "kind", "block_index", "min_inferences", "min_duration_ns", "max_duration_ns", "warmup_ns", "idle_ns", "perf_profile", "sample_rate_hz", "warmup_max_ns", "cooldown", "ceilings", "charging", "inputs", "idle_after_ns")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    SOC_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    BLOCK_INDEX_FIELD_NUMBER: _ClassVar[int]
    MIN_INFERENCES_FIELD_NUMBER: _ClassVar[int]
    MIN_DURATION_NS_FIELD_NUMBER: _ClassVar[int]
    MAX_DURATION_NS_FIELD_NUMBER: _ClassVar[int]
    WARMUP_NS_FIELD_NUMBER: _ClassVar[int]
    IDLE_NS_FIELD_NUMBER: _ClassVar[int]
    PERF_PROFILE_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_HZ_FIELD_NUMBER: _ClassVar[int]
    WARMUP_MAX_NS_FIELD_NUMBER: _ClassVar[int]
    COOLDOWN_FIELD_NUMBER: _ClassVar[int]
    CEILINGS_FIELD_NUMBER: _ClassVar[int]
    CHARGING_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    IDLE_AFTER_NS_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    artifact: str
    soc: str
    kind: SegmentKind
    block_index: int
    min_inferences: int
    min_duration_ns: int
    max_duration_ns: int
    warmup_ns: int
    idle_ns: int
    perf_profile: str
    sample_rate_hz: float
    warmup_max_ns: int
    cooldown: CooldownGate
    ceilings: _containers.RepeatedCompositeFieldContainer[Ceiling]
    charging: Charging
    inputs: str
    idle_after_ns: int
    def __init__(self, run_id: _Optional[str] = ..., artifact: _Optional[str] = ..., soc: _Optional[str] = ..., kind: _Optional[_Union[SegmentKind, str]] = ..., block_index: _Optional[int] = ..., min_inferences: _Optional[int] = ..., min_duration_ns: _Optional[int] = ..., max_duration_ns: _Optional[int] = ..., warmup_ns: _Optional[int] = ..., idle_ns: _Optional[int] = ..., perf_profile: _Optional[str] = ..., sample_rate_hz: _Optional[float] = ..., warmup_max_ns: _Optional[int] = ..., cooldown: _Optional[_Union[CooldownGate, _Mapping]] = ..., ceilings: _Optional[_Iterable[_Union[Ceiling, _Mapping]]] = ..., charging: _Optional[_Union[Charging, str]] = ..., inputs: _Optional[str] = ..., idle_after_ns: _Optional[int] = ...) -> None: ...

class CooldownGate(_message.Message):
    __slots__ = ("sites", "above_start_c", "timeout_ns")
    SITES_FIELD_NUMBER: _ClassVar[int]
    ABOVE_START_C_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_NS_FIELD_NUMBER: _ClassVar[int]
    sites: _containers.RepeatedScalarFieldContainer[str]
    above_start_c: float
    timeout_ns: int
    def __init__(self, sites: _Optional[_Iterable[str]] = ..., above_start_c: _Optional[float] = ..., timeout_ns: _Optional[int] = ...) -> None: ...

class Ceiling(_message.Message):
    __slots__ = ("site", "celsius")
    SITE_FIELD_NUMBER: _ClassVar[int]
    CELSIUS_FIELD_NUMBER: _ClassVar[int]
    site: str
    celsius: float
    def __init__(self, site: _Optional[str] = ..., celsius: _Optional[float] = ...) -> None: ...

class CooldownResult(_message.Message):
    __slots__ = ("block_index", "waited_ns", "timed_out", "message")
    BLOCK_INDEX_FIELD_NUMBER: _ClassVar[int]
    WAITED_NS_FIELD_NUMBER: _ClassVar[int]
    TIMED_OUT_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    block_index: int
    waited_ns: int
    timed_out: bool
    message: str
    def __init__(self, block_index: _Optional[int] = ..., waited_ns: _Optional[int] = ..., timed_out: _Optional[bool] = ..., message: _Optional[str] = ...) -> None: ...

class SamplerReport(_message.Message):
    __slots__ = ("ticks", "late_ticks", "worst_late_ns", "cpu_s", "duration_s", "channels")
    TICKS_FIELD_NUMBER: _ClassVar[int]
    LATE_TICKS_FIELD_NUMBER: _ClassVar[int]
    WORST_LATE_NS_FIELD_NUMBER: _ClassVar[int]
    CPU_S_FIELD_NUMBER: _ClassVar[int]
    DURATION_S_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    ticks: int
    late_ticks: int
    worst_late_ns: int
    cpu_s: float
    duration_s: float
    channels: _containers.RepeatedCompositeFieldContainer[ChannelReport]
    def __init__(self, ticks: _Optional[int] = ..., late_ticks: _Optional[int] = ..., worst_late_ns: _Optional[int] = ..., cpu_s: _Optional[float] = ..., duration_s: _Optional[float] = ..., channels: _Optional[_Iterable[_Union[ChannelReport, _Mapping]]] = ...) -> None: ...

class ChannelReport(_message.Message):
    __slots__ = ("channel", "reads", "failures", "updates", "update_rate_hz", "slowest_read_ns")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    READS_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    UPDATE_RATE_HZ_FIELD_NUMBER: _ClassVar[int]
    SLOWEST_READ_NS_FIELD_NUMBER: _ClassVar[int]
    channel: int
    reads: int
    failures: int
    updates: int
    update_rate_hz: float
    slowest_read_ns: int
    def __init__(self, channel: _Optional[int] = ..., reads: _Optional[int] = ..., failures: _Optional[int] = ..., updates: _Optional[int] = ..., update_rate_hz: _Optional[float] = ..., slowest_read_ns: _Optional[int] = ...) -> None: ...

class SubscribeRequest(_message.Message):
    __slots__ = ("from_seq",)
    FROM_SEQ_FIELD_NUMBER: _ClassVar[int]
    from_seq: int
    def __init__(self, from_seq: _Optional[int] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("seq", "session_id", "run_id", "samples", "marks", "load", "golden", "block", "end", "sampler", "cooldown", "profile", "evaluation", "memory")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    MARKS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    GOLDEN_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    COOLDOWN_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    seq: int
    session_id: str
    run_id: str
    samples: _containers.RepeatedCompositeFieldContainer[Samples]
    marks: _containers.RepeatedCompositeFieldContainer[Mark]
    load: LoadResult
    golden: GoldenResult
    block: BlockResult
    end: SegmentEnd
    sampler: SamplerReport
    cooldown: CooldownResult
    profile: ProfileResult
    evaluation: EvaluationResult
    memory: MemoryResult
    def __init__(self, seq: _Optional[int] = ..., session_id: _Optional[str] = ..., run_id: _Optional[str] = ..., samples: _Optional[_Iterable[_Union[Samples, _Mapping]]] = ..., marks: _Optional[_Iterable[_Union[Mark, _Mapping]]] = ..., load: _Optional[_Union[LoadResult, _Mapping]] = ..., golden: _Optional[_Union[GoldenResult, _Mapping]] = ..., block: _Optional[_Union[BlockResult, _Mapping]] = ..., end: _Optional[_Union[SegmentEnd, _Mapping]] = ..., sampler: _Optional[_Union[SamplerReport, _Mapping]] = ..., cooldown: _Optional[_Union[CooldownResult, _Mapping]] = ..., profile: _Optional[_Union[ProfileResult, _Mapping]] = ..., evaluation: _Optional[_Union[EvaluationResult, _Mapping]] = ..., memory: _Optional[_Union[MemoryResult, _Mapping]] = ...) -> None: ...

class Samples(_message.Message):
    __slots__ = ("channel", "t_ns", "value")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    T_NS_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    channel: int
    t_ns: _containers.RepeatedScalarFieldContainer[int]
    value: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, channel: _Optional[int] = ..., t_ns: _Optional[_Iterable[int]] = ..., value: _Optional[_Iterable[float]] = ...) -> None: ...

class Mark(_message.Message):
    __slots__ = ("phase", "t_start_ns", "t_end_ns", "block_index")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    T_START_NS_FIELD_NUMBER: _ClassVar[int]
    T_END_NS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_INDEX_FIELD_NUMBER: _ClassVar[int]
    phase: Phase
    t_start_ns: int
    t_end_ns: int
    block_index: int
    def __init__(self, phase: _Optional[_Union[Phase, str]] = ..., t_start_ns: _Optional[int] = ..., t_end_ns: _Optional[int] = ..., block_index: _Optional[int] = ...) -> None: ...

class LoadResult(_message.Message):
    __slots__ = ("cold_s", "warm_s", "first_inference_s", "peak_memory_bytes")
    COLD_S_FIELD_NUMBER: _ClassVar[int]
    WARM_S_FIELD_NUMBER: _ClassVar[int]
    FIRST_INFERENCE_S_FIELD_NUMBER: _ClassVar[int]
    PEAK_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    cold_s: float
    warm_s: float
    first_inference_s: float
    peak_memory_bytes: int
    def __init__(self, cold_s: _Optional[float] = ..., warm_s: _Optional[float] = ..., first_inference_s: _Optional[float] = ..., peak_memory_bytes: _Optional[int] = ...) -> None: ...

class GoldenResult(_message.Message):
    __slots__ = ("samples", "bit_equal", "sqnr_db")
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    BIT_EQUAL_FIELD_NUMBER: _ClassVar[int]
    SQNR_DB_FIELD_NUMBER: _ClassVar[int]
    samples: int
    bit_equal: bool
    sqnr_db: float
    def __init__(self, samples: _Optional[int] = ..., bit_equal: _Optional[bool] = ..., sqnr_db: _Optional[float] = ...) -> None: ...

class BlockResult(_message.Message):
    __slots__ = ("block_index", "inferences", "t_first_ns", "t_last_ns", "per_iteration_us", "window_method", "throttled")
    BLOCK_INDEX_FIELD_NUMBER: _ClassVar[int]
    INFERENCES_FIELD_NUMBER: _ClassVar[int]
    T_FIRST_NS_FIELD_NUMBER: _ClassVar[int]
    T_LAST_NS_FIELD_NUMBER: _ClassVar[int]
    PER_ITERATION_US_FIELD_NUMBER: _ClassVar[int]
    WINDOW_METHOD_FIELD_NUMBER: _ClassVar[int]
    THROTTLED_FIELD_NUMBER: _ClassVar[int]
    block_index: int
    inferences: int
    t_first_ns: int
    t_last_ns: int
    per_iteration_us: _containers.RepeatedScalarFieldContainer[float]
    window_method: str
    throttled: bool
    def __init__(self, block_index: _Optional[int] = ..., inferences: _Optional[int] = ..., t_first_ns: _Optional[int] = ..., t_last_ns: _Optional[int] = ..., per_iteration_us: _Optional[_Iterable[float]] = ..., window_method: _Optional[str] = ..., throttled: _Optional[bool] = ...) -> None: ...

class MemoryResult(_message.Message):
    __slots__ = ("peak_bytes", "steady_bytes", "dma_buffer_bytes", "readings")
    PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    STEADY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DMA_BUFFER_BYTES_FIELD_NUMBER: _ClassVar[int]
    READINGS_FIELD_NUMBER: _ClassVar[int]
    peak_bytes: int
    steady_bytes: int
    dma_buffer_bytes: int
    readings: int
    def __init__(self, peak_bytes: _Optional[int] = ..., steady_bytes: _Optional[int] = ..., dma_buffer_bytes: _Optional[int] = ..., readings: _Optional[int] = ...) -> None: ...

class ProfileResult(_message.Message):
    __slots__ = ("ops", "execute_us", "file")
    OPS_FIELD_NUMBER: _ClassVar[int]
    EXECUTE_US_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    ops: _containers.RepeatedCompositeFieldContainer[OpProfile]
    execute_us: _containers.RepeatedScalarFieldContainer[int]
    file: str
    def __init__(self, ops: _Optional[_Iterable[_Union[OpProfile, _Mapping]]] = ..., execute_us: _Optional[_Iterable[int]] = ..., file: _Optional[str] = ...) -> None: ...

class OpProfile(_message.Message):
    __slots__ = ("name", "op_id", "cycles")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OP_ID_FIELD_NUMBER: _ClassVar[int]
    CYCLES_FIELD_NUMBER: _ClassVar[int]
    name: str
    op_id: int
    cycles: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., op_id: _Optional[int] = ..., cycles: _Optional[_Iterable[int]] = ...) -> None: ...

class EvaluationResult(_message.Message):
    __slots__ = ("samples", "outputs")
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    samples: int
    outputs: _containers.RepeatedCompositeFieldContainer[OutputFile]
    def __init__(self, samples: _Optional[int] = ..., outputs: _Optional[_Iterable[_Union[OutputFile, _Mapping]]] = ...) -> None: ...

class OutputFile(_message.Message):
    __slots__ = ("tensor", "file", "size", "sha256")
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    tensor: str
    file: str
    size: int
    sha256: str
    def __init__(self, tensor: _Optional[str] = ..., file: _Optional[str] = ..., size: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class SegmentEnd(_message.Message):
    __slots__ = ("kind", "block_index", "outcome", "failure_class", "message")
    KIND_FIELD_NUMBER: _ClassVar[int]
    BLOCK_INDEX_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    FAILURE_CLASS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    kind: SegmentKind
    block_index: int
    outcome: Outcome
    failure_class: str
    message: str
    def __init__(self, kind: _Optional[_Union[SegmentKind, str]] = ..., block_index: _Optional[int] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., failure_class: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class AckRequest(_message.Message):
    __slots__ = ("seq",)
    SEQ_FIELD_NUMBER: _ClassVar[int]
    seq: int
    def __init__(self, seq: _Optional[int] = ...) -> None: ...

class AckReply(_message.Message):
    __slots__ = ("spool_bytes",)
    SPOOL_BYTES_FIELD_NUMBER: _ClassVar[int]
    spool_bytes: int
    def __init__(self, spool_bytes: _Optional[int] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class CancelReply(_message.Message):
    __slots__ = ("cancelled",)
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    cancelled: int
    def __init__(self, cancelled: _Optional[int] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class FileChunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class StoredQueue(_message.Message):
    __slots__ = ("jobs",)
    class Job(_message.Message):
        __slots__ = ("session_id", "segment")
        SESSION_ID_FIELD_NUMBER: _ClassVar[int]
        SEGMENT_FIELD_NUMBER: _ClassVar[int]
        session_id: str
        segment: Segment
        def __init__(self, session_id: _Optional[str] = ..., segment: _Optional[_Union[Segment, _Mapping]] = ...) -> None: ...
    JOBS_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[StoredQueue.Job]
    def __init__(self, jobs: _Optional[_Iterable[_Union[StoredQueue.Job, _Mapping]]] = ...) -> None: ...
