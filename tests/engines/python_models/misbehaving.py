"""Fails in the way that the options name, for rows whose first value is negative."""

import os
import signal
import sys
import threading

import numpy as np


class Misbehaving:
    max_rows = 8

    def __init__(self, how):
        self.how = how
        self.inputs = {"x": ("FP32", (2,))}
        self.outputs = {"y": ("FP32", (2,))}

    def __call__(self, batch):
        x = batch["x"]
        if not (x[:, 0] < 0).any():
            return {"y": x * 2}
        match self.how:
            case "raise":
                raise RuntimeError("no luck today")
            case "exit":
                sys.exit(3)
            case "hang":
                threading.Event().wait()
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "rows":
                return {"y": x[:-1]}
            case "shape":
                return {"y": np.zeros((len(x), 3), np.float32)}
            case "datatype":
                return {"y": x.astype(np.float64)}
            case "missing":
                return {"z": x}
        return None


def load(device, options):
    return Misbehaving(options["how"])
