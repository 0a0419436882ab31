"""Text from files in figures."""

import warnings

import pytest
from matplotlib.figure import Figure

from calami.core.page import figure_png, safe_text


@pytest.mark.parametrize("word", [r"$\frac{1}{$", r"\$a\$", "$$", "a\nb", "$x$ and $", "\\", "HD 1"])
def test_text_is_drawn_as_it_is(word):
    text = Figure().subplots().set_title(safe_text(word))
    shown, formula = text._preprocess_math(text.get_text())
    assert formula is False and shown == " ".join(word.split())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert figure_png([lambda ax: ax.plot([0, 1], label=safe_text(word)) and ax.legend()], 2, 2)
