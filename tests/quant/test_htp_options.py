import pytest

from quant.errors import UserError
from quant.htp.options import HtpOptions, parse_assignments
from quant.htp.soc import get_soc


def test_defaults_say_nothing_to_the_provider():
    assert HtpOptions().provider_options() == {}


def test_provider_spelling():
    options = parse_assignments(["finalization_mode=3", "vtcm_mb=2", "priority=high"])
    assert options.provider_options() == {
        "htp_graph_finalization_optimization_mode": "3",
        "vtcm_mb": "2",
        "qnn_context_priority": "high",
    }


def test_provider_names_are_understood():
    assert parse_assignments(["qnn_context_priority=low"]) == HtpOptions(priority="low")


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("finalisation_mode=1", "Did you mean finalization_mode"),
        ("finalization_mode=4", "finalization_mode 4 does not exist"),
        ("finalization_mode=fast", "not a value"),
        ("priority=urgent", "context priority 'urgent'"),
        ("htp_arch=70", "htp_arch 70 does not exist"),
        ("htp_arch=75", "--device sm8650"),
        ("soc_model=9999", "soc_model 9999 does not exist"),
        ("enable_htp_weight_sharing=1", "would ignore it"),
        ("offload_graph_io_quantization=1", "on the CPU"),
        ("htp_performance_mode=burst", "run-time setting"),
        ("vtcm_mb=-1", "negative"),
        ("spill_fill_buffer=maybe", "true or false"),
        ("vtcm_mb", "name=value"),
    ],
)
def test_refused(item, message):
    with pytest.raises(UserError, match=message):
        parse_assignments([item])


@pytest.mark.parametrize(
    ("options", "soc", "message"),
    [
        (HtpOptions(vtcm_mb=8), "sm8350", r"vtcm_mb 8 is more than sm8350 has \(4 MB\)"),
        (HtpOptions(bf16=True), "sm8750", "bf16 begins with v81"),
        (HtpOptions(bf16=True), "sm8850", "from soc_model 88 on"),
        (HtpOptions(extended_udma=True), "sm8650", "needs v81"),
    ],
)
def test_refused_for_a_part(options, soc, message):
    with pytest.raises(UserError, match=message):
        options.check(get_soc(soc))
