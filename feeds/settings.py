"""Which settings does a process of the read side have, and where do they come from?"""

from functools import cache
from typing import Annotated

from pydantic import Field, StringConstraints, field_validator
from pydantic_settings import (
    BaseSettings,
    JsonConfigSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from feeds.identifiers import USAGE_KIND_PATTERN, USAGE_KINDS_DEFAULT
from feeds.state import addresses_file

UsageKind = Annotated[str, StringConstraints(pattern=f"^{USAGE_KIND_PATTERN}$")]
EXPIRY_GRACE_MAX_S = 10 * 366 * 24 * 3600


class ProcessSettings(BaseSettings):
    """Settings from the environment, else from a running `up`, else defaults. An empty value counts as absent."""

    model_config = SettingsConfigDict(env_ignore_empty=True, frozen=True, extra="ignore")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 -- pydantic-settings' own signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources in order of precedence: the environment, then the state folder of a running `up`."""
        state_folder = JsonConfigSettingsSource(settings_cls, json_file=addresses_file())
        return init_settings, env_settings, state_folder


class LedgerFacts(ProcessSettings):
    """Settings that are facts of the ledger. A process whose settings differ from the ledger refuses to start."""

    event_shards: int = Field(8, ge=1, le=1024)
    usage_kinds: Annotated[tuple[UsageKind, ...], NoDecode, Field(min_length=1)] = USAGE_KINDS_DEFAULT
    expiry_grace_s: int = Field(0, ge=0, le=EXPIRY_GRACE_MAX_S)

    @field_validator("usage_kinds", mode="before")
    @classmethod
    def split_usage_kinds(cls, value: object) -> object:
        """Parse a comma-separated list."""
        if not isinstance(value, str):
            return value
        return tuple(dict.fromkeys(kind.strip() for kind in value.split(",") if kind.strip()))


class ReaderSettings(LedgerFacts):
    """The endpoint's settings. `reader_database_url` defaults to `database_url`, `feeds_redis_url` to `redis_url`."""

    database_url: str = ""
    reader_database_url: str = ""
    redis_url: str = ""
    feeds_redis_url: str = ""


@cache
def reader_settings() -> ReaderSettings:
    """Return the settings. They are read once per process."""
    read = ReaderSettings()
    return read.model_copy(
        update={
            "reader_database_url": read.reader_database_url or read.database_url,
            "feeds_redis_url": read.feeds_redis_url or read.redis_url,
        }
    )
