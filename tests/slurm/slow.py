"""A logger that takes its time, so that something can happen to a job of a model that learns in no time."""

import time

from lightning.pytorch.loggers import CSVLogger


class SlowLogger(CSVLogger):
    def log_metrics(self, metrics, step=None):
        time.sleep(0.15)
