"""What every test gets."""

from collections.abc import Iterator

import pytest

from support.user_folders import keep_in


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Programs under test keep their key for engines, and compiled kernels, in a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        keep_in(tmp_path_factory.mktemp("user"), patch)
        yield
