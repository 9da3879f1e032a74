"""The settings of every command: flags over environment over file over default.

Environment variables are the field's name in capitals behind `PROMPT_IML_`; the file is
`prompt-iml.toml` in the working directory, one table a command (`[scan]`). The fields below are
the only place where a default stands.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import (
    BaseSettings,
    CliPositionalArg,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

SETTINGS_FILE = "prompt-iml.toml"


class Command(BaseSettings):
    """What all commands share: where settings come from, and in which order."""

    model_config = SettingsConfigDict(
        env_prefix="PROMPT_IML_",
        toml_file=SETTINGS_FILE,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        use_attribute_docstrings=True,
        extra="forbid",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment over `prompt-iml.toml`; flags, which arrive with init, over both."""
        table = (settings_cls.__name__.removesuffix("Settings").lower(),)
        toml = TomlConfigSettingsSource(settings_cls, toml_table_header=table)
        return init_settings, env_settings, toml


class Pool(Command):
    """Where a scan runs and on how many actors; none of it changes a result."""

    address: str = "auto"
    """Ray cluster: `local` starts one here, `auto` takes RAY_ADDRESS or else `local`."""
    min_actors: int | None = Field(None, ge=1)
    """Scan actors at the least; none given: as many as fit when the scan starts."""
    max_actors: int | None = Field(None, ge=1)
    """Scan actors at the most; none given: one a CPU of the cluster."""
    wave_units: int = Field(2000, ge=1)
    """Units in one Ray Data execution; bounds the driver's memory."""
    max_failure_rate: float = Field(0.01, ge=0, le=1)
    """Exit 3 when a larger share of the images failed."""


class ScanSettings(Pool):
    """Scan images: files in, masks and scores in Parquet out."""

    model_config = SettingsConfigDict(cli_prog_name="prompt-iml scan")

    inputs: CliPositionalArg[list[str]] = Field(min_length=1)
    """Directory, glob, file, list of URIs, tar or Parquet shard; local or s3://."""
    output: str
    """Folder for the results, local or s3://."""
    run_id: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Name of the run; none given: a digest of its configuration."""
    model: str = "prompt-iml-micro"
    """Name of a packaged model, or the path of a model folder."""
    engine: Literal["auto", "onnxruntime", "openvino", "torch", "tensorrt"] = "auto"
    """Runtime of the network."""
    format: Literal["auto", "objects", "tar", "parquet", "list"] = "auto"
    """What the inputs are, when it cannot be told from them."""
    image_column: str | None = None
    """Parquet column that holds the image bytes; none given: told from the schema."""
    limit: int | None = Field(None, ge=1)
    """Scan only the first N images."""
    images_per_unit: int = Field(256, ge=1)
    """Plain images, or Parquet rows, that are scanned and committed together."""
    max_pixels: int = Field(210_000_000, ge=1)
    """Larger images fail as too_large, before they are decoded, which takes 10 bytes a pixel."""
    max_object_bytes: int = Field(256 * 2**20, ge=1)
    """Larger images fail as too_large, without being fetched."""
    heatmap: bool = False
    """Also store the probabilities at network resolution, as a 4-bit PNG."""


class DemoSettings(Pool):
    """Forge real photographs, scan them, report, and compare with the truth."""

    model_config = SettingsConfigDict(cli_prog_name="prompt-iml demo")

    output: str = "demo"
    """Local folder for photographs, results and report."""
    model: str = "prompt-iml-micro"
    """Name of a packaged model, or the path of a model folder."""
    seed: int = 0
    """Of the forgeries."""


class ReportSettings(Command):
    """Write one self-contained HTML file over the results of a scan."""

    model_config = SettingsConfigDict(cli_prog_name="prompt-iml report")

    output: CliPositionalArg[str]
    """Folder of the results, as it was given to `scan`."""
    run_id: str | None = None
    """Run to report; none given: the only one there is."""
    path: str | None = None
    """File to write; none given: report.html in OUTPUT."""
    limit: int = Field(200, ge=0)
    """Show at most this many pictures, highest score first."""
