"""The engine, killed with SIGKILL at a chosen moment: `killed_engine.py WHERE NTH <arguments of the engine>`.

WHERE is what is going on at that moment: `cache`, `checkpoint` and `lora` die in the middle of writing the NTH file of
that kind (half of it is on disk under its temporary name), `step` dies between backward and the optimizer's NTH step.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

where, nth = sys.argv[1], int(sys.argv[2])
del sys.argv[1:3]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying_writer(real):
    count = 0

    def save(tensors, path, metadata=None):
        nonlocal count
        count += 1
        real(tensors, path, metadata=metadata)
        if count == nth:
            content = Path(path).read_bytes()
            Path(path).write_bytes(content[: len(content) // 2])
            die()

    return save


if where == "step":
    import torch

    real_step, steps = torch.optim.AdamW.step, 0

    def dying_step(self, *args, **kwargs):
        global steps
        steps += 1
        if steps == nth:
            die()
        return real_step(self, *args, **kwargs)

    torch.optim.AdamW.step = dying_step
else:
    import importlib

    module = importlib.import_module({"lora": "lorapod.engine.export"}.get(where, f"lorapod.engine.{where}"))
    module.save_tensors = dying_writer(module.save_tensors)

from lorapod.engine.__main__ import main  # noqa: E402

sys.exit(main())
