"""What all tests share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Tests draw from the global generator; what they draw does not depend on those before."""
    torch.manual_seed(0)
