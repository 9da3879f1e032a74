"""Commands of this package; `pipeline.cli` finds them by their entry points."""

from __future__ import annotations

from prompt_iml.cluster.settings import (
    RetrainSettings,
    ServeSettings,
    SubmitSettings,
    TrainSettings,
)
from prompt_iml.pipeline.cli import DONE, FAILURES, Entry
from prompt_iml.pipeline.settings import ModelsSettings

TRAIN = Entry(
    TrainSettings,
    "prompt_iml.cluster.training.train:train",
    lambda trained, _: (trained.summary(), DONE),
    needs=("torch",),
    extra="train",
    resumes=True,
)
RETRAIN = Entry(
    RetrainSettings,
    "prompt_iml.cluster.retraining.retrain:retrain",
    lambda summary, _: (summary, DONE if summary["verdict"] == "passed" else FAILURES),
    needs=("torch",),
    extra="train",
    resumes=True,
)
MODELS = Entry(ModelsSettings, "prompt_iml.pipeline.registry.models:run")
SUBMIT = Entry(
    SubmitSettings,
    "prompt_iml.cluster.fleet.submit:submit",
    lambda result, _: result,
    extra="cluster",
)
SERVE = Entry(ServeSettings, "prompt_iml.cluster.fleet.serve:serve_until_signal", extra="serve")
