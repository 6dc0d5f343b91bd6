"""Checks across the methods of one session: do the variants deserve to be compared at all?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from host.errors import RunStatus
from host.store import Store
from host.store.rows import Floats, RunRow
from quant.figures import Provenance

# Two variants of one model that score differently on more than this share of the samples do not
# differ by rounding: one of them is another function.
MAX_DISAGREEMENT = 0.2


@dataclass(frozen=True)
class CrossCheck:
    """One check; `subject` is a variant or a pair. `ok` None: there was nothing to check."""

    check: str
    subject: str
    ok: bool | None
    detail: str


def cross_checks(store: Store, runs: Sequence[RunRow]) -> list[CrossCheck]:
    """Goldens of every run, and the agreement of every pair on the same labelled samples."""
    done = [r for r in runs if r.status is RunStatus.OK]
    checks = [_golden(store, run) for run in done]
    scores = {r.variant: store.scores_of(r.run_id, Provenance.HTP_EMULATOR) for r in done}
    scored = {name: values for name, values in scores.items() if values is not None}
    return checks + [_agreement(a, b, scored[a], scored[b]) for a, b in combinations(scored, 2)]


def _golden(store: Store, run: RunRow) -> CrossCheck:
    golden = store.run_data(run.run_id).golden
    if golden is None:
        return CrossCheck("goldens", run.variant, None, "the device checked none")
    same = "bit-equal" if golden.bit_equal else f"{golden.sqnr_db:.1f} dB"
    detail = f"{golden.samples} outputs of the device against the artifact's: {same}"
    return CrossCheck("goldens", run.variant, golden.bit_equal or golden.sqnr_db >= 40, detail)


def _agreement(a: str, b: str, first: Floats, second: Floats) -> CrossCheck:
    n = min(len(first), len(second))
    one, two = first[:n].reshape(n, -1), second[:n].reshape(n, -1)
    # 0/1 scores must be equal; others may differ by a twentieth of their spread.
    spread = 0.05 * float(np.std(np.concatenate([one, two])))
    binary = bool(np.isin(one, (0, 1)).all() and np.isin(two, (0, 1)).all())
    same = float(np.mean(np.abs(one - two).max(axis=1) <= (0.0 if binary else spread)))
    return CrossCheck(
        "agreement",
        f"{a} / {b}",
        same >= 1 - MAX_DISAGREEMENT,
        f"same score on {same * 100:.1f} % of {n} samples (HTP emulator)",
    )
