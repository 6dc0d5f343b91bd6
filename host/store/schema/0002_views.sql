-- One figure per run and metric: the one closest to the device. A run may carry its accuracy
-- from onnxruntime, from the HTP emulator and from the device at the same time.
CREATE VIEW best_figures AS
SELECT * FROM figures
QUALIFY row_number() OVER (
    PARTITION BY run_id, metric
    ORDER BY valid DESC, value IS NULL, CASE provenance
        WHEN 'measured' THEN 0
        WHEN 'htp_emulator' THEN 1
        WHEN 'emulated_device' THEN 2
        WHEN 'compiler' THEN 3
        WHEN 'file' THEN 4
        WHEN 'ort_cpu' THEN 5
        ELSE 6 END
) = 1;

-- Every run, with its status and the reason; figures as they are, valid or not.
CREATE VIEW all_results AS
WITH wide AS (
    SELECT
        run_id,
        max(value) FILTER (metric = 'accuracy') AS accuracy,
        max(value) FILTER (metric = 'accuracy_drop') AS accuracy_drop,
        max(value) FILTER (metric = 'sqnr_db') AS sqnr_db,
        max(value) FILTER (metric = 'agreement') AS agreement,
        max(value) FILTER (metric = 'latency_ms') AS latency_ms,
        max(ci_low) FILTER (metric = 'latency_ms') AS latency_ci_low_ms,
        max(ci_high) FILTER (metric = 'latency_ms') AS latency_ci_high_ms,
        max(value) FILTER (metric = 'latency_min_ms') AS latency_min_ms,
        max(value) FILTER (metric = 'latency_p90_ms') AS latency_p90_ms,
        max(value) FILTER (metric = 'latency_p99_ms') AS latency_p99_ms,
        max(value) FILTER (metric = 'throughput_items_per_sec') AS throughput_items_per_sec,
        max(value) FILTER (metric = 'power_mw') AS power_mw,
        max(value) FILTER (metric = 'energy_mj') AS energy_mj,
        max(value) FILTER (metric = 'energy_gross_mj') AS energy_gross_mj,
        max(value) FILTER (metric = 'model_size_bytes') AS model_size_bytes,
        max(value) FILTER (metric = 'artifact_bytes') AS artifact_bytes,
        max(value) FILTER (metric = 'download_bytes') AS download_bytes,
        max(value) FILTER (metric = 'memory_mb') AS memory_mb,
        max(value) FILTER (metric = 'startup_ms') AS startup_ms,
        max(value) FILTER (metric = 'startup_warm_ms') AS startup_warm_ms,
        max(value) FILTER (metric = 'first_inference_ms') AS first_inference_ms,
        max(value) FILTER (metric = 'max_temperature_c') AS max_temperature_c,
        max(provenance) FILTER (metric = 'accuracy') AS accuracy_provenance,
        max(provenance) FILTER (metric = 'latency_ms') AS latency_provenance,
        max(provenance) FILTER (metric = 'power_mw') AS power_provenance,
        max(provenance) FILTER (metric = 'energy_mj') AS energy_provenance,
        max(provenance) FILTER (metric = 'memory_mb') AS memory_provenance,
        coalesce(bool_and(valid), true) AS valid,
        string_agg(DISTINCT metric || ': ' || reason, '; ') FILTER (NOT valid) AS invalid_reasons
    FROM best_figures
    GROUP BY run_id
)
SELECT
    runs.run_id, runs.session_id, runs.created_at, runs.finished_at,
    runs.status, runs.failure_class, runs.message,
    coalesce(wide.valid, true) AS figures_valid,
    coalesce(wide.invalid_reasons, '') AS invalid_reasons,
    runs.model_name, runs.model_type, runs.model_fingerprint,
    'qualcomm' AS hardware_type, runs.soc, runs.device, runs.device_serial,
    runs.method AS quantization_method, runs.variant, runs.options_json,
    runs.profile, runs.perf_profile, runs.artifact_sha256,
    runs.power_method, runs.power_update_hz,
    runs.accuracy_metric, runs.accuracy_higher_is_better,
    wide.* EXCLUDE (run_id, valid, invalid_reasons)
FROM runs LEFT JOIN wide USING (run_id);

-- What a decision may rest on: runs that are ok, and of those the valid figures.
CREATE VIEW quantization_results AS
WITH wide AS (
    SELECT
        run_id,
        max(value) FILTER (metric = 'accuracy') AS accuracy,
        max(value) FILTER (metric = 'latency_ms') AS latency_ms,
        max(value) FILTER (metric = 'latency_min_ms') AS latency_min_ms,
        max(value) FILTER (metric = 'latency_p90_ms') AS latency_p90_ms,
        max(value) FILTER (metric = 'throughput_items_per_sec') AS throughput_items_per_sec,
        max(value) FILTER (metric = 'power_mw') AS power_mw,
        max(value) FILTER (metric = 'energy_mj') AS energy_mj,
        max(value) FILTER (metric = 'model_size_bytes') AS model_size_bytes,
        max(value) FILTER (metric = 'memory_mb') AS memory_mb,
        max(value) FILTER (metric = 'startup_ms') AS startup_ms,
        max(provenance) FILTER (metric = 'accuracy') AS accuracy_provenance,
        max(provenance) FILTER (metric = 'latency_ms') AS latency_provenance,
        max(provenance) FILTER (metric = 'power_mw') AS power_provenance,
        max(provenance) FILTER (metric = 'energy_mj') AS energy_provenance,
        max(provenance) FILTER (metric = 'memory_mb') AS memory_provenance
    FROM best_figures
    WHERE valid AND value IS NOT NULL
    GROUP BY run_id
)
SELECT
    runs.run_id, runs.session_id, runs.created_at, runs.model_name, runs.model_type,
    'qualcomm' AS hardware_type, runs.device, runs.device_serial,
    runs.method AS quantization_method, runs.variant, runs.options_json,
    wide.accuracy, runs.accuracy_metric, runs.accuracy_higher_is_better,
    wide.latency_ms AS latency, wide.latency_ms, wide.latency_min_ms, wide.latency_p90_ms,
    wide.throughput_items_per_sec,
    wide.power_mw AS power_consumption, wide.power_mw / 1000 AS power_watts, wide.energy_mj,
    wide.model_size_bytes / 1e6 AS model_size, wide.model_size_bytes / 1e6 AS model_size_mb,
    wide.memory_mb, wide.startup_ms,
    wide.accuracy_provenance, wide.latency_provenance, wide.power_provenance,
    wide.energy_provenance, wide.memory_provenance
FROM runs LEFT JOIN wide USING (run_id)
WHERE runs.status = 'ok';
