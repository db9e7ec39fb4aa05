"""Which form of a network is the fastest here: measured once for each kind of network on a machine, and remembered.

The form changes the last digits of results, which must not depend on what a clock said this time. So what was chosen is
kept in a file, for all commands that come after, and nothing is measured where it can't be kept; and the choice is the
same for all batch sizes and numbers of threads and processes, which must not change a digit either.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from coprobe.core.engine import BatchSize, frozen
from coprobe.core.files import check_writable_directory, write_json
from coprobe.errors import InputError
from coprobe.fast.form import Form
from coprobe.models import Classifier

#: Weights of convolutions times pixels from which a network is worth measuring: a ResNet-18 of width 20 on CIFAR-10.
WORTH = 1e9

#: Passes of every form; how far behind one is given up after the first; how much faster than the default one must be.
PASSES, FAR, MARGIN = 3, 1.5, 1.1


def fastest(
    forms: Sequence[Form],
    make: Callable[[Form], Classifier],
    model: Classifier,
    images: Tensor,
    precision: str,
    clock: Callable[[], float] = time.perf_counter,
) -> Form:
    """The fastest form: remembered from before, or measured now.

    Args:
        forms: to choose from. The first is taken without measuring for a small network, and where the choice can't be
            kept; else by as much as `MARGIN` another one must be faster.
        make: from a form to the model in it, or in less of it, as its attribute `form` says.
        model: whose forms they are.
        images: float (batch, channels, height, width) in [0, 1], on the model's device; repeated, so that passes are
            timed on as many as are worked on at once by default.
        precision: what the model computes in.
        clock: seconds from some moment on.
    """
    convolutions = [module for module in model.network.modules() if isinstance(module, nn.Conv2d)]
    weights = sum(convolution.weight.numel() for convolution in convolutions)
    if len(forms) == 1 or not len(images) or weights * math.prod(images.shape[2:]) < WORTH:
        return forms[0]
    kind = {
        "processor": processor() if images.device.type == "cpu" else torch.cuda.get_device_name(images.device),
        "instructions": [torch.backends.cpu.get_cpu_capability(), os.environ.get("ONEDNN_MAX_CPU_ISA")],
        "torch": torch.__version__,
        "precision": precision,
        "image": list(images.shape[1:]),
        "convolutions": [repr(convolution) for convolution in convolutions],
        "forms": [str(form) for form in forms],
    }
    path = directory() / f"{hashlib.sha256(json.dumps(kind).encode()).hexdigest()[:16]}.json"
    known = _remembered(path, forms)
    if known is None and _can_be_written(path):
        seconds = _measured(forms, make, images, clock)
        known = _remembered(path, forms)  # if another process was quicker
        if known is None and forms[0] in seconds:
            quickest = min(seconds, key=lambda form: seconds[form])
            known = quickest if seconds[quickest] * MARGIN < seconds[forms[0]] else forms[0]
            timings = {str(form): round(value, 4) for form, value in seconds.items()}
            try:
                write_json(path, {**kind, "seconds": timings, "form": str(known)})
            except OSError:
                return forms[0]
    return known or forms[0]


def directory() -> Path:
    """Where choices are kept: `forms` in `$COPROBE_CACHE`, else in `~/.cache/coprobe`."""
    return Path(os.environ.get("COPROBE_CACHE") or "~/.cache/coprobe").expanduser() / "forms"


def processor() -> str:
    """The processor's name, where the system says it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _remembered(path: Path, forms: Sequence[Form]) -> Form | None:
    """What a file says was chosen; None if it isn't there, is damaged, or names another form."""
    try:
        chosen = json.loads(path.read_text(encoding="utf-8"))["form"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return next((form for form in forms if str(form) == chosen), None)


def _can_be_written(path: Path) -> bool:
    try:
        check_writable_directory(path.parent)
    except InputError:
        return False
    return True


def _measured(
    forms: Sequence[Form], make: Callable[[Form], Classifier], images: Tensor, clock: Callable[[], float]
) -> dict[Form, float]:
    """Seconds of a pass by form, of those that can be had."""
    count = BatchSize(device=images.device).now
    images = images[torch.arange(count, device=images.device) % len(images)]
    devices = [images.device] if images.device.type == "cuda" else []
    seconds: dict[Form, float] = {}
    with torch.random.fork_rng(devices):
        for form in forms:
            made = make(form)
            if form in (forms[0], getattr(made, "form", None)):
                with contextlib.suppress(RuntimeError):  # out of memory, say
                    seconds[form] = _seconds(made, images, FAR * min(seconds.values(), default=math.inf), clock)
    return seconds


def _seconds(made: nn.Module, images: Tensor, limit: float, clock: Callable[[], float]) -> float:
    """Of the quickest pass forward and back to the images; what is beyond the limit at first is not timed again."""
    quickest = math.inf
    for number in range(PASSES):
        if number and quickest > limit:
            break
        points = images.clone().requires_grad_()
        began = clock()
        with frozen(made):
            torch.autograd.grad(made(points).logsumexp(1).sum(), points)
        if images.device.type == "cuda":
            torch.cuda.synchronize(images.device)
        quickest = min(quickest, clock() - began)
    return quickest
