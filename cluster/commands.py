"""This room's commands, as the entry points of `pipeline.cli` find them."""

from __future__ import annotations

import json

from prompt_iml.cluster.settings import (
    RetrainSettings,
    ServeSettings,
    SubmitSettings,
    TrainSettings,
)
from prompt_iml.engine.errors import MissingDependency
from prompt_iml.pipeline.cli import DONE, FAILURES, Entry
from prompt_iml.pipeline.settings import ModelsSettings


def run_train(settings: TrainSettings) -> int:
    """`prompt-iml train`"""
    from prompt_iml.cluster.training.train import train

    print(json.dumps(train(settings).summary()))
    return DONE


def run_retrain(settings: RetrainSettings) -> int:
    """`prompt-iml retrain`; exit 3 when the gate refuses the new prompts."""
    from prompt_iml.cluster.retraining.retrain import retrain

    summary = retrain(settings)
    print(json.dumps(summary))
    return DONE if summary["verdict"] == "passed" else FAILURES


def run_models(settings: ModelsSettings) -> int:
    """`prompt-iml models`"""
    from prompt_iml.pipeline.registry.models import run

    print(json.dumps(run(settings)))
    return DONE


def run_submit(settings: SubmitSettings) -> int:
    """`prompt-iml submit`; exits as the scan does."""
    from prompt_iml.cluster.fleet.submit import submit

    summary, code = submit(settings)
    print(json.dumps(summary))
    return code


def run_serve(settings: ServeSettings) -> int:
    """`prompt-iml serve`; a signal ends it with exit 0."""
    try:
        from prompt_iml.cluster.fleet.serve import serve_until_signal
    except ModuleNotFoundError as error:
        raise MissingDependency(f"pip install 'prompt-iml[serve]' ({error})") from error

    print(json.dumps(serve_until_signal(settings)))
    return DONE


TRAIN = Entry(TrainSettings, run_train)
RETRAIN = Entry(RetrainSettings, run_retrain)
MODELS = Entry(ModelsSettings, run_models)
SUBMIT = Entry(SubmitSettings, run_submit)
SERVE = Entry(ServeSettings, run_serve)
