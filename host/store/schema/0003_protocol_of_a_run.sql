-- What the protocol of a run reports beside its samples: how long cooling down took, and how well
-- the sampler kept its time. One row per segment.
CREATE TABLE cooldowns (
    run_id VARCHAR NOT NULL,
    block_index INTEGER NOT NULL,
    waited_ns BIGINT NOT NULL,
    timed_out BOOLEAN NOT NULL,
    message VARCHAR NOT NULL
);

CREATE TABLE sampler_reports (
    run_id VARCHAR NOT NULL,
    ticks BIGINT NOT NULL,
    late_ticks BIGINT NOT NULL,
    worst_late_ns BIGINT NOT NULL,
    cpu_s DOUBLE NOT NULL,
    duration_s DOUBLE NOT NULL
);

CREATE TABLE channel_reports (
    run_id VARCHAR NOT NULL,
    channel UINTEGER NOT NULL,
    reads BIGINT NOT NULL,
    failures BIGINT NOT NULL,
    updates BIGINT NOT NULL,
    update_rate_hz DOUBLE NOT NULL,
    slowest_read_ns BIGINT NOT NULL
);
