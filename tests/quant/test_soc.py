import pytest

from quant.errors import UserError
from quant.htp.soc import SOCS, get_soc, soc_of_model


@pytest.mark.parametrize(
    ("soc_id", "soc_model", "arch"),
    [
        ("sm8350", 30, 68),
        ("sm8450", 36, 69),
        ("sm8475", 42, 69),
        ("sm8550", 43, 73),
        ("sm8650", 57, 75),
        ("sm8750", 69, 79),
        ("sm8850", 87, 81),
    ],
)
def test_identity_of_each_part(soc_id, soc_model, arch):
    soc = get_soc(soc_id)
    assert (soc.soc_model, soc.arch) == (soc_model, arch)
    assert soc_of_model(soc_model) is soc


def test_table_is_consistent():
    models = [s.soc_model for s in SOCS.values()]
    assert len(set(models)) == len(models)
    ids = [i for s in SOCS.values() for i in s.soc_ids]
    assert len(set(ids)) == len(ids)
    for soc in SOCS.values():
        assert soc.arch >= 68
        assert soc.thermal.skin_severe_c < soc.thermal.skin_critical_c
        assert soc.thermal.npu_severe_c < soc.thermal.npu_shutdown_c
        # A copied ratio must say so by having no models of its own.
        assert soc.ratio_basis
    assert SOCS["sm8650"].latency_vs_sm8650 == 1.0


def test_case_does_not_matter():
    assert get_soc(" SM8650 ").id == "sm8650"


@pytest.mark.parametrize("old", ["sm8150", "sm8250"])
def test_old_parts_are_refused_by_name(old):
    with pytest.raises(UserError, match=rf"{old} is too old.*v66.*v68"):
        get_soc(old)


def test_unknown_part_names_the_nearest():
    with pytest.raises(UserError, match="sm8650"):
        get_soc("sm8655")
