"""Numbers as people write them."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from toys import examples

from calami.core.tables import digits_of, limit_text

SIZES = st.floats(1e-6, 1e9)


def number(text):
    return float(text.split()[-1].replace(",", ""))


@given(SIZES)
@settings(max_examples=examples(100))
def test_limits_stay_true(value):
    above, below = number(limit_text(">", value)), number(limit_text("<", value))
    assert above <= value * (1 + 1e-9) and below >= value * (1 - 1e-9)
    assert value - above <= 0.0101 * value and below - value <= 0.0101 * value


@given(SIZES, st.floats(1e-3, 1.0))
@settings(max_examples=examples(100))
def test_what_is_left_out_is_less_than_a_twentieth_of_the_error(value, part):
    (text,) = digits_of(part * value, value)
    assert abs(number(text) - value) <= 0.0501 * part * value


def test_what_is_not_known():
    assert digits_of(math.nan, 21_730.0) == ["21,700"] and digits_of(3.0, math.inf) == ["∞"]
    assert limit_text(">", math.inf) == "> ∞" and limit_text("", 0.0) == "0"
