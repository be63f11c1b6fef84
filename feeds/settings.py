"""Which settings does a process of the read side have, and where do they come from?"""

from functools import cache
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StringConstraints, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    JsonConfigSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from feeds.addresses.postgres import parse_postgres
from feeds.addresses.redis import parse_redis
from feeds.addresses.text import BadAddress
from feeds.identifiers import USAGE_KIND_PATTERN, USAGE_KINDS_DEFAULT, split_usage_kinds
from feeds.state import addresses_file

UsageKind = Annotated[str, StringConstraints(pattern=f"^{USAGE_KIND_PATTERN}$")]
EXPIRY_GRACE_MAX_S = 10 * 366 * 24 * 3600
STOP_ACCEPTING_MAX_S = 300


def check_postgres(text: str, info: ValidationInfo) -> str:
    """Return an address of Postgres as libpq reads it. Raises BadAddress."""
    return parse_postgres(text, variable_of(info)) if text else ""


def check_redis(text: str, info: ValidationInfo) -> str:
    """Return an address of Redis that `parse_redis` can parse. Raises BadAddress."""
    if text:
        parse_redis(text, variable_of(info))
    return text


def variable_of(info: ValidationInfo) -> str:
    """Return the name of the environment variable of a field."""
    return str(info.field_name).upper()


PostgresUrl = Annotated[str, AfterValidator(check_postgres)]
RedisUrl = Annotated[str, AfterValidator(check_redis)]


class Environment(EnvSettingsSource):
    """The environment's variables, without the blanks and line ends around their values."""

    def __call__(self) -> dict[str, Any]:
        """Return the values. One that is empty, or blank, is absent."""
        stripped = {name: value.strip() for name, value in super().__call__().items()}
        return {name: value for name, value in stripped.items() if value}


class ProcessSettings(BaseSettings):
    """Settings from the environment, else from a running `up`, else defaults. A blank value counts as absent."""

    # Without the input: it may be an address with a password.
    model_config = SettingsConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 -- `Environment` is used in its place
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 -- pydantic-settings' own signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources in order of precedence: the environment, then the state folder of a running `up`."""
        state_folder = JsonConfigSettingsSource(settings_cls, json_file=addresses_file())
        return init_settings, Environment(settings_cls), state_folder


class LedgerFacts(ProcessSettings):
    """Settings that are facts of the ledger. A process whose settings differ from the ledger refuses to start."""

    event_shards: int = Field(8, ge=1, le=1024)
    usage_kinds: Annotated[tuple[UsageKind, ...], NoDecode, Field(min_length=1)] = USAGE_KINDS_DEFAULT
    expiry_grace_s: int = Field(0, ge=0, le=EXPIRY_GRACE_MAX_S)

    @field_validator("usage_kinds", mode="before")
    @classmethod
    def split_usage_kinds(cls, value: object) -> object:
        """Parse a comma-separated list."""
        return split_usage_kinds(value) if isinstance(value, str) else value


class ReaderSettings(LedgerFacts):
    """The endpoint's settings. `reader_database_url` defaults to `database_url`, `feeds_redis_url` to `redis_url`."""

    database_url: PostgresUrl = ""
    reader_database_url: PostgresUrl = ""
    redis_url: RedisUrl = ""
    feeds_redis_url: RedisUrl = ""
    stop_accepting_after_s: float = Field(5, ge=0, le=STOP_ACCEPTING_MAX_S)


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


def explain_settings(error: ValidationError | SettingsError) -> str:
    """Return each variable with what is wrong about it, but without its value, which may hold a password."""
    if isinstance(error, SettingsError):
        return f"{addresses_file()} is damaged: start `usage-feeds up` again."
    explained = []
    for problem in error.errors(include_url=False, include_input=False):
        cause = problem.get("ctx", {}).get("error")
        variable = str(problem["loc"][0]).upper()
        explained.append(str(cause) if isinstance(cause, BadAddress) else f"{variable}: {problem['msg']}.")
    return " ".join(explained)
