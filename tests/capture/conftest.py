"""The tiny random models, written once."""

from pathlib import Path

import pytest
from tiny_models import CONFIGS, write_model


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Architecture -> folder."""
    root = tmp_path_factory.mktemp("models")
    return {name: write_model(root / name, name) for name in CONFIGS}
