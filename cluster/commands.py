"""This room's commands, as the entry points of `pipeline.cli` find them."""

from __future__ import annotations

import json

from cluster.settings import TrainSettings
from pipeline.cli import DONE, Entry


def run_train(settings: TrainSettings) -> int:
    """`prompt-iml train`"""
    from cluster.train import train

    print(json.dumps(train(settings).summary()))
    return DONE


TRAIN = Entry(TrainSettings, run_train)
