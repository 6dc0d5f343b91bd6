-- Raw values are kept as they came; every figure can be computed again from them.
-- No foreign keys: DuckDB cannot rename a column of a table that one points to, and `db check`
-- finds orphans. Times ending in _ns are on the device's monotonic clock; created_at is UTC.

CREATE TABLE properties (
    key VARCHAR PRIMARY KEY,
    value VARCHAR NOT NULL
);

CREATE TABLE sessions (
    session_id VARCHAR PRIMARY KEY,
    created_at TIMESTAMP NOT NULL,
    finished_at TIMESTAMP,
    fingerprint VARCHAR NOT NULL,         -- of what --resume must find unchanged
    emulated BOOLEAN NOT NULL,            -- from the device's own description
    profile VARCHAR NOT NULL,             -- rapid, quick, normal, sustained
    seed BIGINT NOT NULL,                 -- of the order of the blocks
    command VARCHAR NOT NULL,
    host_version VARCHAR NOT NULL,
    host_json VARCHAR NOT NULL
);

CREATE TABLE devices (
    session_id VARCHAR NOT NULL,
    device_serial VARCHAR NOT NULL,
    device VARCHAR NOT NULL,
    soc VARCHAR NOT NULL,
    emulated BOOLEAN NOT NULL,
    description_json VARCHAR NOT NULL,    -- what Describe said, whole
    PRIMARY KEY (session_id, device_serial)
);

CREATE TABLE runs (
    run_id VARCHAR PRIMARY KEY,
    session_id VARCHAR NOT NULL,
    created_at TIMESTAMP NOT NULL,
    finished_at TIMESTAMP,
    model_name VARCHAR NOT NULL,
    model_type VARCHAR NOT NULL,
    model_fingerprint VARCHAR NOT NULL,
    task_fingerprint VARCHAR NOT NULL,
    soc VARCHAR NOT NULL,
    device VARCHAR NOT NULL,
    device_serial VARCHAR NOT NULL,
    method VARCHAR NOT NULL,
    variant VARCHAR NOT NULL,
    options_json VARCHAR NOT NULL,
    accuracy_metric VARCHAR,
    accuracy_higher_is_better BOOLEAN,
    artifact_sha256 VARCHAR,
    status VARCHAR NOT NULL CHECK (status IN ('ok', 'failed', 'skipped', 'invalid')),
    failure_class VARCHAR CHECK (failure_class IN
        ('USER_ERROR', 'DEVICE_ERROR', 'HARNESS_ERROR', 'TIMEOUT', 'KILLED')),
    message VARCHAR NOT NULL,
    seed BIGINT NOT NULL,
    profile VARCHAR NOT NULL,
    perf_profile VARCHAR NOT NULL,
    power_method VARCHAR,                 -- how power was read, NULL where it was not
    power_update_hz DOUBLE,               -- measured rate at which the reading changes
    notes_json VARCHAR NOT NULL,
    fingerprint_json VARCHAR NOT NULL     -- build, libraries, governor, charge, ...
);

CREATE TABLE channels (
    run_id VARCHAR NOT NULL,
    channel UINTEGER NOT NULL,
    name VARCHAR NOT NULL,
    site VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,
    unit VARCHAR NOT NULL,
    method VARCHAR NOT NULL,
    nominal_rate_hz DOUBLE NOT NULL,
    source VARCHAR NOT NULL,
    PRIMARY KEY (run_id, channel)
);

-- No key: an index costs 20 times the insert rate. Exactly-once comes from `streams`.
CREATE TABLE samples (
    run_id VARCHAR NOT NULL,
    channel UINTEGER NOT NULL,
    t_ns BIGINT NOT NULL,
    value DOUBLE NOT NULL
);

CREATE TABLE marks (
    run_id VARCHAR NOT NULL,
    block_index INTEGER NOT NULL,
    phase VARCHAR NOT NULL,
    t_start_ns BIGINT NOT NULL,
    t_end_ns BIGINT NOT NULL
);

CREATE TABLE blocks (
    run_id VARCHAR NOT NULL,
    block_index INTEGER NOT NULL,
    inferences BIGINT NOT NULL,
    t_first_ns BIGINT NOT NULL,
    t_last_ns BIGINT NOT NULL,
    window_method VARCHAR NOT NULL,
    throttled BOOLEAN NOT NULL,
    per_iteration_us FLOAT[] NOT NULL     -- empty where the runtime cannot tell
);

CREATE TABLE loads (
    run_id VARCHAR NOT NULL,
    cold_s DOUBLE NOT NULL,
    warm_s DOUBLE NOT NULL,
    first_inference_s DOUBLE NOT NULL,
    peak_memory_bytes UBIGINT NOT NULL
);

CREATE TABLE goldens (
    run_id VARCHAR NOT NULL,
    samples BIGINT NOT NULL,
    bit_equal BOOLEAN NOT NULL,
    sqnr_db DOUBLE NOT NULL
);

CREATE TABLE scores (
    run_id VARCHAR NOT NULL,
    engine VARCHAR NOT NULL,              -- a provenance
    metric VARCHAR NOT NULL,
    shape INTEGER[] NOT NULL,
    score DOUBLE[] NOT NULL,              -- per sample, row-major
    PRIMARY KEY (run_id, engine)
);

CREATE TABLE figures (
    run_id VARCHAR NOT NULL,
    metric VARCHAR NOT NULL,
    value DOUBLE,
    ci_low DOUBLE,
    ci_high DOUBLE,
    unit VARCHAR NOT NULL,
    provenance VARCHAR NOT NULL,
    n BIGINT NOT NULL,
    valid BOOLEAN NOT NULL,
    reason VARCHAR NOT NULL,
    PRIMARY KEY (run_id, metric, provenance)
);

CREATE TABLE stages (
    run_id VARCHAR NOT NULL,
    stage VARCHAR NOT NULL,
    seconds DOUBLE NOT NULL,
    cached BOOLEAN NOT NULL
);

CREATE TABLE clock_offsets (
    session_id VARCHAR NOT NULL,
    device_serial VARCHAR NOT NULL,
    host_ns BIGINT NOT NULL,
    device_ns BIGINT NOT NULL,
    round_trip_ns BIGINT NOT NULL
);

-- The agent numbers its batches without gaps, so one number per stream makes a batch that comes
-- twice count once. It is written in the transaction of the batch itself.
CREATE TABLE streams (
    stream_id VARCHAR PRIMARY KEY,
    session_id VARCHAR NOT NULL,
    last_seq UBIGINT NOT NULL
);
