"""Settings of every command: flags over environment over file over default.

An environment variable is the field's name in capitals after `PROMPT_IML_`; the file is
`prompt-iml.toml` in the working directory, with one table for each command (`[scan]`). Defaults are
declared here alone, and a flag that several commands have is declared once, in a class they share.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import ByteSize, Field, model_validator
from pydantic_settings import (
    BaseSettings,
    CliPositionalArg,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from prompt_iml.engine.errors import UsageError

if TYPE_CHECKING:
    from prompt_iml.pipeline.storage.s3 import Access

SETTINGS_FILE = "prompt-iml.toml"
ENVIRONMENT = "PROMPT_IML_"
# Settings of a scan that need an output, and those for scans without one.
STORED = ("run_id", "retry_failed", "skip_scanned", "refresh_prompts", "heatmap")
PRINTED = ("json_lines", "overlay")
RUN_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class Command(BaseSettings):
    """Settings that every command reads from the same sources in the same order.

    Attributes:
        renamed: earlier names of fields, with today's.
        removed: fields of earlier versions, with the reason. A command that gives one is refused.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        use_attribute_docstrings=True,
        extra="forbid",
        defer_build=True,  # only the schema of the command that runs is built
    )

    renamed: ClassVar[dict[str, str]] = {}
    removed: ClassVar[dict[str, str]] = {}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources, strongest first: flags (they arrive with init), environment, file.

        Raises:
            UsageError: the environment or the file gives a setting by an earlier name.
            SettingsError: the file cannot be read.
        """
        table = cls.from_file()
        cls.refuse_earlier(map(str.upper, os.environ), lambda name: ENVIRONMENT + name.upper())
        cls.refuse_earlier(table, lambda name: name, f"{SETTINGS_FILE}: ")
        return init_settings, env_settings, InitSettingsSource(settings_cls, table)

    @classmethod
    def refuse_earlier(
        cls, given: Iterable[str], spelled: Callable[[str], str], where: str = ""
    ) -> None:
        """Raise `UsageError` if a field of earlier versions is given, spelled as `given` has it."""
        names = set(given)
        for old, new in cls.renamed.items():
            if spelled(old) in names:
                raise UsageError(f"{where}{spelled(old)} is now {spelled(new)}")
        for old, reason in cls.removed.items():
            if spelled(old) in names:
                raise UsageError(f"{where}{spelled(old)} was removed: {reason}")

    @classmethod
    def from_file(cls) -> dict[str, Any]:
        """Return the settings that the settings file gives this command; raises `SettingsError`."""
        return _table(cls.__name__.removesuffix("Settings").lower())

    def check(self) -> None:
        """Refuse wrong inputs that can be seen at once, before a model or Ray is imported.

        Raises:
            UsageError: an input is missing, or a required package is not installed.
        """


def _table(name: str) -> dict[str, Any]:
    """Return a command's table of the settings file; empty where there is none."""
    try:
        tables = tomllib.loads(Path(SETTINGS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SettingsError(f"{SETTINGS_FILE}: {error}") from error
    table = tables.get(name, {})
    if not isinstance(table, dict):
        raise SettingsError(f"{SETTINGS_FILE}: {name} is no table: write [{name}] above its keys")
    return table


class ModelFlags(Command):
    """Flag of the commands that open a model."""

    model: str = "prompt-iml-micro"
    """Name of a packaged model, or path of a model folder."""

    def check(self) -> None:
        """Find the model."""
        from prompt_iml.engine.model.folder import load_model

        super().check()
        load_model(self.model)


class EngineFlags(ModelFlags):
    """Flags of the commands that run a model."""

    engine: Literal["auto", "onnxruntime", "openvino", "torch", "tensorrt"] = "auto"
    """Runtime that computes the network."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of openvino's sums; auto is float32. With bfloat16 some labels change."""

    def check(self) -> None:
        """Find the engine's package; with GPUs for actors only the nodes must have it."""
        from prompt_iml.engine.runtimes.open import check_engine

        super().check()
        if not getattr(self, "actor_gpus", 0):
            check_engine(self.engine, self.precision)


class LookFlags(EngineFlags):
    """Flags of the commands that run a model on pictures of any size."""

    closer_look: int | None = Field(None, ge=0)
    """Show pictures above 12 megapixels in up to N further tiles, where they are most suspicious;
    0: never. Without it, N is what the policy was calibrated with."""


class RegistryFlags(Command):
    """Flags of the commands that run a model with prompts of a registry."""

    registry: str | None = None
    """Registry of prompt sets, local or s3://; without one, the model's own prompts are used."""
    prompts: str = "current"
    """Prompt set of the registry: its id, or at least the first 8 digits of it, or `current`;
    looked up once at the start."""


class RayFlags(Command):
    """Flag of the commands that run on Ray."""

    address: str = "auto"
    """Ray cluster to use: `local` starts one here; `auto` takes RAY_ADDRESS, or else `local`."""

    def check(self) -> None:
        """Find the cluster."""
        from prompt_iml.pipeline.checks import check_cluster

        super().check()
        check_cluster(self.address)


class AccessFlags(Command):
    """Flag of the commands that read inputs from object stores."""

    s3_access: Literal["signed", "anonymous", "requester-pays"] = "signed"
    """Access to s3:// inputs: signed by your credentials, anonymous, or signed and paid by you."""
    allow_private_addresses: bool = False
    """Let https:// inputs and redirects reach addresses of this machine and of private networks."""

    @property
    def own_folders(self) -> list[str | None]:
        """Folders of the command that are no inputs: access to them is never anonymous."""
        return []

    @property
    def access(self) -> Access:
        """Access to the stores of inputs and of the command's own folders."""
        from prompt_iml.pipeline.storage.s3 import Access
        from prompt_iml.pipeline.storage.storage import canonical, is_s3, split_s3

        uris = [canonical(folder) for folder in self.own_folders if folder]
        signed = tuple(split_s3(uri)[0] for uri in uris if is_s3(uri))
        return Access(self.s3_access, signed, self.allow_private_addresses)

    def check(self) -> None:
        """Use the access from here on."""
        from prompt_iml.pipeline.storage.s3 import use

        use(self.access)
        super().check()


class InputFlags(AccessFlags):
    """Flags that name the inputs and say what they are and how they are divided."""

    inputs: CliPositionalArg[list[str]] = Field(min_length=1)
    """Folder, glob, image, list, or shard (tar, zip or Parquet); local, s3://, https://, gs://, az://
    or hf://."""
    format: Literal["auto", "objects", "tar", "parquet", "list"] = "auto"
    """Type of the inputs, where detecting it is not wanted."""
    image_column: str | None = None
    """Parquet column with the image bytes; without it, the column is detected."""
    slice: str | None = Field(None, pattern=r"^[1-9][0-9]{0,3}/[1-9][0-9]{0,3}$")
    """Take only share I of N of the inputs, written I/N; each share is a run of its own."""
    images_per_unit: int = Field(256, ge=1)
    """Number of plain images, or Parquet rows, that are scanned and committed together."""
    trust_lists: bool = False
    """Allow a list in a bucket to name other buckets, and files on the machines that scan."""

    @model_validator(mode="after")
    def _check_slice(self) -> Self:
        share, _, shares = (self.slice or "1/1").partition("/")
        if int(share) > int(shares):
            raise UsageError(f"--slice {self.slice}: the first number must not exceed the second")
        return self

    def check(self) -> None:
        """Find the inputs."""
        from prompt_iml.pipeline.checks import find_inputs
        from prompt_iml.pipeline.storage.s3 import use

        use(self.access)
        find_inputs(self.inputs, SETTINGS_FILE)
        super().check()


class LimitFlags(Command):
    """Limits on a single image."""

    max_pixels: int = Field(210_000_000, ge=1)
    """Images with more pixels fail as too_large before decoding. A JPEG takes 12 bytes a pixel, or
    27 where large ones follow each other; other formats take some 20."""
    image_timeout: float = Field(300.0, gt=0)
    """Seconds that decoding one image, or one run of the network, may take."""


class Pool(RayFlags):
    """Flags of where a scan runs and on how many actors; they do not change results."""

    min_actors: int | None = Field(None, ge=1)
    """Least number of scan actors; without it, as many as fit when the scan starts."""
    max_actors: int | None = Field(None, ge=1)
    """Largest number of scan actors, which an autoscaler can add; without it, none are added."""
    actor_gpus: float = Field(0, ge=0)
    """GPUs of each actor, for engines that run on GPUs; below 1, actors share a GPU."""
    wave_units: int = Field(2000, ge=1)
    """Number of units in one Ray Data execution, which bounds the driver's memory."""
    max_failure_rate: float = Field(0.01, ge=0, le=1)
    """Exit with 3 when a larger share of the images failed."""
    log: Literal["text", "json"] = "text"
    """Format of the log on stderr: lines for people, or JSON objects with run and unit."""

    @model_validator(mode="after")
    def _check_actors(self) -> Self:
        least, most = self.min_actors, self.max_actors
        if least and most and least > most:
            raise UsageError(f"--min-actors {least} is more than --max-actors {most}")
        return self


class ScanSettings(InputFlags, RegistryFlags, LookFlags, LimitFlags, Pool):
    """Scan images: print a verdict on each, or write scores and masks to Parquet."""

    model_config = SettingsConfigDict(cli_shortcuts={"json-lines": "json"})

    removed: ClassVar[dict[str, str]] = {"decoder": "JPEG files are decoded by Pillow"}

    inputs: CliPositionalArg[list[str]] = Field([])
    """Folder, glob, image, list, or shard (tar, zip or Parquet); local, s3://, https://, gs://, az://
    or hf://."""
    output: str | None = None
    """Folder for the results, local, s3://, gs:// or az://; without one, verdicts are printed."""
    json_lines: bool = False
    """Without --output: print each verdict as a JSON object with the columns of its row."""
    overlay: str | None = None
    """Without --output: folder for the pictures that have a mask, with it drawn, local or s3://."""
    run_id: str | None = Field(None, pattern=RUN_ID)
    """Name of the run; without one, a digest of its configuration."""
    retry_failed: str | None = Field(None, pattern=RUN_ID)
    """Scan again what failed in this run of the same output, in place of INPUTS."""
    retry_codes: list[str] = []
    """Retry only failures with these error codes; without any, all failures."""
    skip_scanned: str | None = Field(None, pattern=RUN_ID)
    """Skip inputs that this run of the same output already scanned (same URI and ETag)."""
    refresh_prompts: bool = False
    """Look up `current` before each unit; every row names the prompt set that made it."""
    policy: str | None = None
    """Policy file of `calibrate` to apply; without it, that of the model or of its prompt set."""
    limit: int | None = Field(None, ge=1)
    """Scan only the first N images."""
    max_object_bytes: int = Field(256 * 2**20, ge=1)
    """Images of more bytes fail as too_large and are not fetched."""
    read_timeout: float = Field(1800.0, gt=0)
    """Seconds that reading the next image may take, with what a shard holds before it."""
    actor_memory: ByteSize | None = Field(None, ge=2 * 2**30)
    """Memory that a scan actor may take beside its engine, for example 8GiB: an image or a shard
    that needs more fails. Without it there is no limit. It works on Linux only."""
    heatmap: bool = False
    """Also store the probabilities at the network's resolution, as a 4-bit PNG."""

    @model_validator(mode="after")
    def _check_inputs(self) -> Self:
        if self.retry_failed and (self.inputs or self.skip_scanned):
            raise UsageError("--retry-failed takes its inputs from the run: leave out all others")
        if self.retry_codes and not self.retry_failed:
            raise UsageError("--retry-codes needs --retry-failed RUN")
        if not self.inputs and not self.retry_failed:
            raise UsageError("INPUTS are missing: name what to scan, or give --retry-failed RUN")
        if self.run_id and self.run_id in (self.retry_failed, self.skip_scanned):
            raise UsageError(f"run {self.run_id} cannot continue itself: choose another --run-id")
        return self

    @model_validator(mode="after")
    def _check_output(self) -> Self:
        fix = "is for scans without --output: leave one out" if self.output else "needs --output"
        for name in PRINTED if self.output else STORED:
            if getattr(self, name):
                raise UsageError(f"--{name.replace('_', '-')} {fix}")
        return self

    @model_validator(mode="after")
    def _check_prompts(self) -> Self:
        chosen = self.prompts != "current"
        if self.policy and self.registry:
            raise UsageError("--policy and --registry: each prompt set has a policy of its own")
        if self.registry is None and (chosen or self.refresh_prompts):
            raise UsageError("--prompts and --refresh-prompts need --registry URI")
        if self.refresh_prompts and chosen:
            raise UsageError("--refresh-prompts follows `current`: leave out --prompts")
        return self

    @property
    def own_folders(self) -> list[str | None]:
        """Return the output and the registry."""
        return [self.output, self.registry]

    def check(self) -> None:
        """Find the policy and the output's parent, and that of the overlays."""
        from prompt_iml.pipeline.checks import check_output, find_inputs

        super().check()
        find_inputs([self.policy] if self.policy else [])
        if self.output:
            check_output(self.output)
        if self.overlay:
            check_output(self.overlay, "--overlay")


class DemoSettings(ModelFlags, Pool):
    """Manipulate real photographs, scan them, report, and compare with the truth."""

    output: str = "demo"
    """Local folder for photographs, results and report."""
    seed: int = 0
    """Seed of the generated forgeries."""

    def check(self) -> None:
        """Find the output's parent."""
        from prompt_iml.pipeline.checks import check_output

        super().check()
        check_output(self.output)


class ResultsFlags(Command):
    """Flags of the commands that read the results of a scan."""

    output: CliPositionalArg[str]
    """Folder of the results, as it was given to `scan`."""

    def check(self) -> None:
        """Find the results."""
        from prompt_iml.pipeline.checks import find_results

        super().check()
        find_results(self.output)


class ReportSettings(AccessFlags, ResultsFlags):
    """Write the results of a scan as one self-contained HTML file."""

    run_id: str | None = None
    """Run to report; without it, the only one there is."""
    path: str | None = None
    """File to write; without it, report.html in OUTPUT."""
    limit: int = Field(200, ge=0)
    """Show at most this many pictures of the highest scores, and as many failures."""
    sample: int = Field(24, ge=0)
    """Show this many random pictures of each label as well."""
    side: int = Field(640, ge=16)
    """Longer side of the pictures on the page, in pixels."""

    @property
    def own_folders(self) -> list[str | None]:
        """Return the folder of the results and that of the report."""
        return [self.output, self.path]


class ReviewSettings(AccessFlags, ResultsFlags):
    """Decide about the pictures of a scan on a page in your browser; decisions become labels."""

    run_id: str | None = None
    """Run to review; without it, the only one there is."""
    label: list[Literal["authentic", "uncertain", "manipulated"]] = []
    """Review only images with these labels; without any, those of every label."""
    order: Literal["uncertainty", "score"] = "uncertainty"
    """Order: closest to a threshold first, with a random tenth, or highest score first."""
    limit: int = Field(1000, ge=1)
    """Review at most this many images."""
    reviewer: str | None = Field(None, pattern=r"^[^\x00-\x1f\x7f]{1,100}$")
    """Name that your decisions bear; without it, your login name."""
    port: int = Field(0, ge=0, le=65535)
    """Port of the page on 127.0.0.1; 0 takes one that is free."""
    browser: bool = True
    """Open the page in your browser."""

    @property
    def own_folders(self) -> list[str | None]:
        """Return the folder of the results."""
        return [self.output]


class LinesFlags(ResultsFlags):
    """Flag of the commands that print lines of the results."""

    model_config = SettingsConfigDict(cli_shortcuts={"json-lines": "json"})

    json_lines: bool = False
    """Print a JSON object in place of each line."""


class RunsSettings(LinesFlags):
    """List the runs of an output, newest first: when, complete or not, model, counts by label."""


class TopSettings(LinesFlags):
    """Print the images of the highest scores, a line each."""

    limit: int = Field(20, ge=1)
    """Print at most this many images."""
    label: list[Literal["authentic", "uncertain", "manipulated"]] = []
    """Print only images with these labels; without any, those of every label."""
    run_id: str | None = None
    """Run to read; without it, the only one there is."""


class ExportSettings(AccessFlags, ResultsFlags):
    """Write the findings of a scan for other tools: COCO, masks, overlays, CSV or JSON lines."""

    to: Literal["coco", "masks", "overlays", "csv", "jsonl"]
    """Form to write: coco, masks (PNG), overlays (JPEG), csv or jsonl."""
    run_id: str | None = None
    """Run to export; without it, the only one there is."""
    label: list[Literal["authentic", "uncertain", "manipulated"]] = []
    """Export only the images with these labels; without any, all images."""
    path: str | None = None
    """File or folder to write; without it, one in OUTPUT/exports."""
    images: bool = False
    """Copy the images of a COCO file too, into the folder images: FiftyOne opens no shards and
    buckets. The folder lies beside the file, or beside the file's folder if that is annotations."""

    @model_validator(mode="after")
    def _only_coco_has_images(self) -> Self:
        if self.images and self.to != "coco":
            raise ValueError(f"--images goes with --to coco, and not with {self.to}: leave it out")
        return self

    @property
    def own_folders(self) -> list[str | None]:
        """Return the folder of the results and what is written."""
        return [self.output, self.path]


class CompactSettings(ResultsFlags):
    """Merge the many small files of a finished scan into a few large ones."""

    run_id: str | None = None
    """Run to compact; without it, every run that is complete."""
    target_size: ByteSize = Field(ByteSize(256 * 2**20), ge=1)
    """Merge files up to this size together, for example 256MiB; merging takes as much memory."""
    grace: float = Field(10, ge=0)
    """Seconds before replaced files are removed, for readers that have them open."""


class VerifySettings(ResultsFlags):
    """Read all results of a scan again and report what is missing or damaged."""

    run_id: str | None = None
    """Run to verify; without it, every run."""


class PlanSettings(InputFlags, LookFlags):
    """List what a scan would read and, with --estimate, how long it would take; writes nothing."""

    estimate: bool = False
    """Measure this machine on some of the images and print hours and GPU-hours."""
    rate: float | None = Field(None, gt=0)
    """Images per second of one actor; without it, this machine is measured."""
    actors: int = Field(1, ge=1)
    """Number of scan actors that the estimate assumes."""
    actor_gpus: float = Field(0, ge=0)
    """GPUs of each actor that the estimate assumes."""
    sample: int = Field(32, ge=1)
    """Number of images to measure."""


class BuildSettings(ModelFlags):
    """Build a model's TensorRT engine for this GPU; stored only if it computes the same."""

    precision: Literal["float32", "float16", "bfloat16"] = "float16"
    """Precision of the engine, except where measurement requires float32."""
    batch: int = Field(16, ge=1, le=256)
    """Tiles in a batch; halves of it are built too, for when the GPU's memory is full."""
    plugin: Literal["own", "none"] = "own"
    """Deformable attention: our plugin, or ONNX operators, risky in TensorRT."""
    force: bool = False
    """Build again where an engine is already stored."""


class DoctorSettings(ModelFlags):
    """Report what this machine can run, what is missing, and the commands to install it."""


class CompletionSettings(Command):
    """Print a script for your shell that completes commands, flags and their values."""

    shell: CliPositionalArg[Literal["bash", "zsh", "fish"]]
    """Shell of the script: bash, zsh or fish."""


class ImportSettings(AccessFlags):
    """Write labels of any form (COCO, folders of masks, tables) as one Parquet file of labels."""

    truths: CliPositionalArg[list[str]] = Field(min_length=1)
    """Tables of images and masks, JSON lists, COCO files, folders such as Tp, Gt, Au, or outputs
    with reviews."""
    output: str = "labels.parquet"
    """Parquet file to write, local or s3://."""

    @property
    def own_folders(self) -> list[str | None]:
        """Return the file that is written."""
        return [self.output]

    def check(self) -> None:
        """Find the truths."""
        from prompt_iml.pipeline.checks import find_inputs

        super().check()
        find_inputs(self.truths, SETTINGS_FILE)


class EvaluationFlags(AccessFlags, LookFlags):
    """Flags that name the images of an evaluation, and the model."""

    manifests: CliPositionalArg[list[str]] = Field(min_length=1)
    """Truths: tables of images and masks, labels, JSON lists, COCO files, folders Tp, Gt, Au, or
    outputs with reviews."""
    limit: int | None = Field(None, ge=1)
    """Evaluate at most N images of each truth, spread evenly over it."""

    def check(self) -> None:
        """Find the truths."""
        from prompt_iml.pipeline.checks import find_inputs

        super().check()
        find_inputs(self.manifests, SETTINGS_FILE)


class EvaluateSettings(EvaluationFlags):
    """Measure a model on images whose truth is known."""

    policy: str | None = None
    """Policy file (policy.json) to apply; without it, the model's own."""
    perturbation: list[str] = Field(["none"], min_length=1)
    """Perturbations of the images: none, all, usual, paper, jpeg-70, ..."""
    predictions: str | None = None
    """Folder of another model's maps (png, npy, TruFor's npz) to evaluate in place of a model."""
    output: str = "evaluation.json"
    """JSON file to write."""
    results: str | None = None
    """File to write the result of each image to: .csv, .jsonl or .parquet."""
    masks: str | None = None
    """Folder to write the mask that was found in each image to, as a PNG."""
    plot: str | None = None
    """PNG file to plot to; needs matplotlib."""

    @model_validator(mode="after")
    def _check_predictions(self) -> Self:
        if self.predictions and (self.policy or self.perturbation != ["none"]):
            raise UsageError("--predictions are evaluated as they are: no --policy, --perturbation")
        return self


class CalibrateSettings(EvaluationFlags):
    """Choose a model's thresholds on held-back images for a stated false-positive rate."""

    output: str = "policy.json"
    """Policy file to write."""
    report: str | None = None
    """JSON file for all numbers of the calibration."""
    plot: str | None = None
    """PNG file for a plot of the reliability; needs matplotlib."""
    id: str | None = None
    """Name of the policy in results; without it, the model's version and the rate."""
    perturbation: list[str] = Field(
        ["none", "jpeg-90", "jpeg-70", "resize-0.5", "resize-1.5"], min_length=1
    )
    """Perturbations, each applied to every image: thresholds must hold for re-saved images too."""
    false_positive_rate: float = Field(0.01, gt=0, lt=1)
    """Label at most this share of the authentic images of any size class manipulated."""
    miss_rate: float = Field(0.15, ge=0, lt=1)
    """Label at most this share of the manipulated images authentic."""
    flagged_rate: float = Field(0.3, ge=0, le=1)
    """Let at most this share of the authentic images have a mask, even if F1 falls."""
    min_side: int | None = Field(128, ge=1)
    """Label smaller images uncertain; the default is half the side of the training images."""
    min_jpeg_quality: int | None = Field(50, ge=1, le=100)
    """Label JPEG files of lower quality uncertain; the default is the lowest in training."""


class ModelsSettings(Command):
    """List the prompt sets of a registry, promote one, or roll the last promotion back."""

    action: CliPositionalArg[Literal["list", "promote", "rollback"]]
    """Action to take: list, promote or rollback."""
    prompt_set: CliPositionalArg[str | None] = None
    """Prompt set to promote: its id, or at least the first 8 digits of it."""
    registry: str
    """Registry of prompt sets, local or s3://."""
    model: str | None = None
    """Base model (name or folder) of the prompt sets; without it, `list` shows all of them."""
