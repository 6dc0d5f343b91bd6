"""The --methods grammar."""

import json

import pytest

from quant.errors import UserError
from quant.methods import METHODS
from quant.methods.grammar import make_variant, parse_methods, variant_from_json


def test_all_is_every_row_with_fp16_first():
    names = [v.canonical for v in parse_methods("all")]
    assert names == list(METHODS)
    assert names[0] == "fp16"


def test_canonical_form_orders_options_and_drops_defaults():
    (variant,) = parse_methods(
        " INT8[ percentile=99.9, activation_bits=16 ,calibration-method=mse]"
    )
    assert variant.canonical == "int8[activation-bits=16,calibration-method=mse,percentile=99.9]"
    assert parse_methods("int8[activation-bits=8]")[0].canonical == "int8"
    assert parse_methods(variant.canonical) == (variant,)


def test_commas_inside_brackets_do_not_split_and_repeats_collapse():
    variants = parse_methods(
        "int4[block-size=32,activation-bits=16],fp16,fp16+int8,int4[block-size=32]"
    )
    assert [v.canonical for v in variants] == ["int4[block-size=32]", "fp16", "fp16+int8"]
    assert [s.method for s in variants[2].steps] == ["fp16", "int8"]


def test_options_json_holds_the_defaults_and_round_trips():
    (variant,) = parse_methods("fp16+int8[activation-bits=16]")
    rows = json.loads(variant.options_json)
    assert rows[1]["options"]["activation_bits"] == 16
    assert rows[1]["options"]["calibration_method"] == "min-max"
    assert variant_from_json(rows) == variant


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("int9", "int8"),
        ("int8[activation-bit=8]", "activation-bits"),
        ("int8[activation-bits=x]", "not a int"),
        ("int8[activation-bits]", "no value"),
        ("int8[activation-bits=12]", "not 8 or 16"),
        ("int8[activation-bits=8,activation_bits=16]", "given twice"),
        ("int8[calibration-method=mean]", "mse"),
        ("int8[percentile=30]", "percentile"),
        ("int8[activation-bits=8", "Unbalanced"),
        ("int8]]", "Unbalanced"),
        ("int8,,fp16", "empty name"),
        ("", "empty name"),
        ("int4[block-size=24]", "power of two"),
        ("int4[block-size=32,activation-bits=8]", "16-bit activations"),
    ],
)
def test_bad_text_is_one_clear_error(text, part):
    with pytest.raises(UserError, match=part.replace("[", r"\[")):
        parse_methods(text)


def test_variant_from_python_values():
    assert make_variant("int8", activation_bits=16, percentile=None).canonical == (
        "int8[activation-bits=16]"
    )
    with pytest.raises(UserError, match="activation_bits"):
        make_variant("int8", activation_bit=16)
