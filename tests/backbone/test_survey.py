"""Models of each of timm's modules: layers are read as they lie, classes as the model has them."""

import pytest

from tests.tools.survey import chosen, survey


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_layers_lie_as_they_are_said_to(name: str) -> None:
    found = survey(name)
    assert found.clear > found.layers / 2
    assert found.wrong == []
    assert found.logits == pytest.approx(0, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*chosen()])
def test_a_model_of_each_module_is_read_as_it_is(name: str) -> None:
    found = survey(name)
    assert found.refused == ""
    assert found.layers
    assert found.wrong == []
    assert found.logits is None or found.logits < 1e-4
