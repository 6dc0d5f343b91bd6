-- How the device's clock relates to the host's monotonic clock, one line per epoch (an agent that
-- starts again starts a new one): device = device_ns + (host - host_ns) * (1 + drift_ppm / 1e6).
ALTER TABLE clock_offsets ADD COLUMN epoch INTEGER DEFAULT 0;

CREATE TABLE clock_estimates (
    session_id VARCHAR NOT NULL,
    device_serial VARCHAR NOT NULL,
    epoch INTEGER NOT NULL,
    host_ns BIGINT NOT NULL,
    device_ns BIGINT NOT NULL,
    drift_ppm DOUBLE,                     -- NULL: observed for too short a time
    uncertainty_ns BIGINT NOT NULL,
    observations INTEGER NOT NULL,
    PRIMARY KEY (session_id, device_serial, epoch)
);

-- Passes of their own, because they slow what they measure. Memory is that of the process that
-- runs the model.
CREATE TABLE memory_passes (
    run_id VARCHAR NOT NULL,
    peak_bytes BIGINT NOT NULL,           -- load and inference
    steady_bytes BIGINT NOT NULL,         -- median while inferring
    dma_buffer_bytes BIGINT NOT NULL,     -- of the peak
    readings INTEGER NOT NULL
);

CREATE TABLE op_profiles (
    run_id VARCHAR NOT NULL,
    op_id BIGINT NOT NULL,
    name VARCHAR NOT NULL,
    cycles BIGINT[] NOT NULL              -- one per profiled inference
);

CREATE TABLE profiles (
    run_id VARCHAR NOT NULL,
    execute_us BIGINT[] NOT NULL,         -- of the whole graph, one per profiled inference
    file VARCHAR NOT NULL                 -- the runtime's own, on the device
);
