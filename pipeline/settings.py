"""The settings of every command: flags over environment over file over default.

Environment variables are the field's name in capitals behind `PROMPT_IML_`; the file is
`prompt-iml.toml` in the working directory, one table a command (`[scan]`). The fields below are
the only place where a default stands.
"""

from __future__ import annotations

from typing import Literal

from pydantic import ByteSize, Field
from pydantic_settings import (
    BaseSettings,
    CliPositionalArg,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

SETTINGS_FILE = "prompt-iml.toml"
RUN_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


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
        try:
            toml = TomlConfigSettingsSource(settings_cls, toml_table_header=table)
        except (ValueError, TypeError, AttributeError, OSError) as error:
            raise SettingsError(f"{SETTINGS_FILE}: {error}") from error
        return init_settings, env_settings, toml


class Pool(Command):
    """Where a scan runs and on how many actors; none of it changes a result."""

    address: str = "auto"
    """Ray cluster: `local` starts one here, `auto` takes RAY_ADDRESS or else `local`."""
    min_actors: int | None = Field(None, ge=1)
    """Scan actors at the least; none given: as many as fit when the scan starts."""
    max_actors: int | None = Field(None, ge=1)
    """Scan actors at the most; none given: no more than at the start. An autoscaler brings them."""
    actor_gpus: float = Field(0, ge=0)
    """GPUs of each scan actor; below 1, actors share one. For engines that run on GPUs."""
    wave_units: int = Field(2000, ge=1)
    """Units in one Ray Data execution; bounds the driver's memory."""
    max_failure_rate: float = Field(0.01, ge=0, le=1)
    """Exit 3 when a larger share of the images failed."""
    log: Literal["text", "json"] = "text"
    """Lines on stderr for people, or JSON objects with run and unit, the actors' too."""


class ScanSettings(Pool):
    """Scan images: files in, masks and scores in Parquet out."""

    model_config = SettingsConfigDict(cli_prog_name="prompt-iml scan")

    inputs: CliPositionalArg[list[str]] = Field([])
    """Directory, glob, file, list of URIs, tar or Parquet shard; local or s3://."""
    output: str
    """Folder for the results, local or s3://."""
    run_id: str | None = Field(None, pattern=RUN_ID)
    """Name of the run; none given: a digest of its configuration."""
    retry_failed: str | None = Field(None, pattern=RUN_ID)
    """Run under the same output of which to scan what failed, and nothing else; no INPUTS then."""
    retry_codes: list[str] = []
    """Retry only failures with these codes; none given: all."""
    skip_scanned: str | None = Field(None, pattern=RUN_ID)
    """Run under the same output whose inputs are not scanned again while URI and etag are same."""
    model: str = "prompt-iml-micro"
    """Name of a packaged model, or the path of a model folder."""
    engine: Literal["auto", "onnxruntime", "openvino", "torch", "tensorrt"] = "auto"
    """Runtime of the network."""
    registry: str | None = None
    """Registry of prompt sets, local or s3://; none given: the prompts the model comes with."""
    prompts: str = "current"
    """Prompt set of the registry: `current`, looked up once when the run starts, or an id."""
    refresh_prompts: bool = False
    """Look `current` up again before each unit; every row names the set that made it."""
    format: Literal["auto", "objects", "tar", "parquet", "list"] = "auto"
    """What the inputs are, when it cannot be told from them."""
    image_column: str | None = None
    """Parquet column that holds the image bytes; none given: told from the schema."""
    limit: int | None = Field(None, ge=1)
    """Scan only the first N images."""
    slice: str | None = Field(None, pattern=r"^[1-9][0-9]{0,3}/[1-9][0-9]{0,3}$")
    """Scan the i-th of n shares of the units, as i/n; each share is a run of its own."""
    images_per_unit: int = Field(256, ge=1)
    """Plain images, or Parquet rows, that are scanned and committed together."""
    max_pixels: int = Field(210_000_000, ge=1)
    """Larger images fail as too_large, before they are decoded, which takes 10 bytes a pixel."""
    max_object_bytes: int = Field(256 * 2**20, ge=1)
    """Larger images fail as too_large, without being fetched."""
    trust_lists: bool = False
    """Let a list in an object store name files of the machines that scan."""
    image_timeout: float = Field(300.0, gt=0)
    """Seconds that one image may take to decode, or one run of the network."""
    heatmap: bool = False
    """Also store the probabilities at network resolution, as a 4-bit PNG."""


class DemoSettings(Pool):
    """Manipulate real photographs, scan them, report, and compare with the truth."""

    model_config = SettingsConfigDict(cli_prog_name="prompt-iml demo")

    output: str = "demo"
    """Local folder for photographs, results and report."""
    model: str = "prompt-iml-micro"
    """Name of a packaged model, or the path of a model folder."""
    seed: int = 0
    """Seed of the generated forgeries."""


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


class CompactSettings(Command):
    """Merge the many small files of a finished scan into few."""

    model_config = SettingsConfigDict(cli_prog_name="prompt-iml compact")

    output: CliPositionalArg[str]
    """Folder of the results, as it was given to `scan`."""
    run_id: str | None = None
    """Run to compact; none given: every run that is complete."""
    target_size: ByteSize = Field(ByteSize(256 * 2**20), ge=1)
    """Merge files up to this size together, say 256MiB; so much memory it takes."""
    grace: float = Field(10, ge=0)
    """Seconds for which replaced files stay, for those who are reading them."""


class VerifySettings(Command):
    """Prove that the results of a scan are whole: read everything again."""

    model_config = SettingsConfigDict(cli_prog_name="prompt-iml verify")

    output: CliPositionalArg[str]
    """Folder of the results, as it was given to `scan`."""
    run_id: str | None = None
    """Run to verify; none given: every run."""


class PlanSettings(Command):
    """List what a scan would scan, and with --estimate say what it would take; writes nothing."""

    model_config = SettingsConfigDict(cli_prog_name="prompt-iml plan")

    inputs: CliPositionalArg[list[str]] = Field(min_length=1)
    """Directory, glob, file, list of URIs, tar or Parquet shard; local or s3://."""
    estimate: bool = False
    """Measure this machine on some of the images, and print hours and GPU-hours."""
    rate: float | None = Field(None, gt=0)
    """Images a second of one actor, in place of measuring."""
    actors: int = Field(1, ge=1)
    """Scan actors to reckon with."""
    actor_gpus: float = Field(0, ge=0)
    """GPUs of each."""
    sample: int = Field(32, ge=1)
    """Images to look at."""
    model: str = "prompt-iml-micro"
    """Name of a packaged model, or the path of a model folder."""
    engine: Literal["auto", "onnxruntime", "openvino", "torch", "tensorrt"] = "auto"
    """Runtime of the network."""
    format: Literal["auto", "objects", "tar", "parquet", "list"] = "auto"
    """What the inputs are, when it cannot be told from them."""
    image_column: str | None = None
    """Parquet column that holds the image bytes; none given: told from the schema."""
    images_per_unit: int = Field(256, ge=1)
    """Plain images, or Parquet rows, that are scanned and committed together."""
    slice: str | None = Field(None, pattern=r"^[1-9][0-9]{0,3}/[1-9][0-9]{0,3}$")
    """Count only the share i/n of the units."""
    trust_lists: bool = False
    """Let a list in an object store name files of the machines that scan."""


class BuildSettings(Command):
    """Build a model's TensorRT engine for this GPU; stored only if it computes the same."""

    model_config = SettingsConfigDict(cli_prog_name="prompt-iml build")

    model: str = "prompt-iml-micro"
    """Name of a packaged model, or the path of a model folder."""
    precision: Literal["float32", "float16", "bfloat16"] = "float16"
    """Of all but what must stay float32, which is measured."""
    batch: int = Field(16, ge=1, le=256)
    """Tiles a batch; halves of it are built too, for when the GPU's memory is full."""
    plugin: Literal["own", "none"] = "own"
    """Deformable attention: our plugin, or ONNX's operators, risky in TensorRT."""
    force: bool = False
    """Build though this was built before."""


class DoctorSettings(Command):
    """Say what this machine can run, what is missing, and the command that mends it."""

    model_config = SettingsConfigDict(cli_prog_name="prompt-iml doctor")

    model: str = "prompt-iml-micro"
    """Name of a packaged model, or the path of a model folder."""


class Judging(Command):
    """What is judged, by which model in which runtime."""

    manifests: CliPositionalArg[list[str]] = Field(min_length=1)
    """CSV files with the columns image and mask (empty: authentic); paths relative to each."""
    model: str = "prompt-iml-micro"
    """Name of a packaged model, or the path of a model folder."""
    engine: Literal["auto", "onnxruntime", "openvino", "torch", "tensorrt"] = "auto"
    """Runtime of the network."""
    limit: int | None = Field(None, ge=1)
    """Judge at most N images of a manifest, spread evenly over it."""


class EvaluateSettings(Judging):
    """Measure a model on images whose truth is known."""

    model_config = SettingsConfigDict(cli_prog_name="prompt-iml evaluate")

    policy: str | None = None
    """policy.json to judge by; none given: the model's own."""
    perturbation: list[str] = Field(["none"], min_length=1)
    """What happens to the images first: none, all, usual, paper, jpeg-70, ..."""
    output: str = "evaluation.json"
    """JSON file to write."""
    plot: str | None = None
    """PNG to write; needs matplotlib."""


class CalibrateSettings(Judging):
    """Choose a model's thresholds on held-back images at a stated false-positive rate."""

    model_config = SettingsConfigDict(cli_prog_name="prompt-iml calibrate")

    output: str = "policy.json"
    """Policy to write."""
    report: str | None = None
    """JSON file for every number of the calibration."""
    plot: str | None = None
    """PNG of the reliability to write; needs matplotlib."""
    id: str | None = None
    """Name of the policy, as results carry it; none given: the model's, with the rate."""
    perturbation: list[str] = Field(
        ["none", "jpeg-90", "jpeg-70", "resize-0.5", "resize-1.5"], min_length=1
    )
    """What happens to every image, each in turn: what is re-saved and resized counts too."""
    false_positive_rate: float = Field(0.01, gt=0, lt=1)
    """Label at most this share of the authentic images manipulated."""
    miss_rate: float = Field(0.05, ge=0, lt=1)
    """Label at most this share of the forged images authentic."""
    flagged_rate: float = Field(1.0, ge=0, le=1)
    """Let at most this share of the authentic images have more than 0.5 % flagged pixels, at the
    price of F1. 1: whatever gives the best F1; the label, not the mask, says whether."""
    min_side: int | None = Field(128, ge=1)
    """Label smaller images uncertain; the default is half of what the network was trained on."""
    min_jpeg_quality: int | None = Field(50, ge=1, le=100)
    """Label JPEG files of lower quality uncertain; the default is the lowest trained on."""


class ModelsSettings(Command):
    """List the prompt sets of a registry, promote one, or roll the last promotion back."""

    model_config = SettingsConfigDict(cli_prog_name="prompt-iml models")

    action: CliPositionalArg[Literal["list", "promote", "rollback"]]
    """Action to take."""
    prompt_set: CliPositionalArg[str | None] = None
    """Prompt set to promote: its id, or at least the first 8 digits of it."""
    registry: str
    """Registry of prompt sets, local or s3://."""
    model: str | None = None
    """Base model (name or folder) that the prompt sets are for; `list` shows all of them."""
