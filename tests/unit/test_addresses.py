"""What is shown of an address never holds its password."""

import pytest

from server.addresses import check_engine_url, hide_password
from server.settings import EngineSettings


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:s3cret@host:5432/db", "postgresql://u:***@host:5432/db"),
        ("postgresql+asyncpg://u:s3/cret@host/db", "postgresql+asyncpg://u:***@host/db"),
        ("postgresql://u:s3@cret@host/db", "postgresql://u:***@host/db"),
        ("postgresql://host/db?user=u&password=s3cret&x=1", "postgresql://host/db?user=u&password=***&x=1"),
        ("postgresql://u:s3cret@host/db?sslPassword=s3cret", "postgresql://u:***@host/db?sslPassword=***"),
        ("redis://:s3cret@host:6379/0", "redis://:***@host:6379/0"),
        ("redis://host:6379/0?password=s3cret", "redis://host:6379/0?password=***"),
        ("postgresql://user@host/db", "postgresql://user@host/db"),
        ("sqlite:////data/mulligan.db", "sqlite:////data/mulligan.db"),
        ("filesystem://", "filesystem://"),
        ("no address", "no address"),
    ],
)
def test_what_is_shown(url: str, shown: str):
    assert hide_password(url) == shown


@pytest.mark.parametrize("url", ["http://u:canary@127.0.0.1:3", "http://canary@127.0.0.1:3", "https://:canary@host"])
def test_an_engines_address_with_a_password_is_refused_and_not_repeated(url: str):
    with pytest.raises(ValueError, match="takes no user or password") as caught:
        check_engine_url(url)
    assert "canary" not in str(caught.value)
    with pytest.raises(ValueError, match="takes no user or password"):
        EngineSettings(url=url)
    with pytest.raises(ValueError, match="takes no user or password"):
        EngineSettings(urls=("http://127.0.0.1:3", url))
