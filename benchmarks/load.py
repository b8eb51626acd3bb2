"""Peak memory and time of loading a single-file transformer of 2 GB, in a fresh process.

    python benchmarks/load.py [--gigabytes 2] [--rounds 3] [--folder DIR]

A file of random bf16 weights is written, with the names of Z-Image's single files and tensors of their sizes. In turn it
is loaded onto the CPU by a process of its own, and read once by another, into one buffer of 16 MB. Peak memory is the
growth of the resident set over that of the same process with everything imported and the model built without memory.
Before each round the file is taken out of the page cache, where the system allows that (`cold`). Then all is done again
with the file in the cache (`warm`), where nothing is read from disk: there the time is that of taking fresh memory from
the system, so that reading the file into fresh memory is timed too.
Aims: peak memory under 1.1 times the file's size, time under 1.3 of reading the file once. Prints a line of JSON and a
sentence.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

MOST_MEMORY = 1.1
MOST_TIME = 1.3

CONFIG = {
    "_class_name": "ZImageTransformer2DModel", "all_patch_size": [2], "all_f_patch_size": [1], "in_channels": 16,
    "dim": 3840, "n_refiner_layers": 1, "n_heads": 30, "n_kv_heads": 30, "norm_eps": 1e-5, "qk_norm": True,
    "cap_feat_dim": 2560, "rope_theta": 256.0, "t_scale": 1000.0, "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
}  # fmt: skip
BYTES_A_LAYER = 0.35e9

READ = """
import json, os, sys, time

def read(into, step):
    view, at = memoryview(into), 0
    began = time.perf_counter()
    with open(sys.argv[1], "rb", buffering=0) as file:
        while got := file.readinto(view[at : at + (16 << 20)]):
            at += got * step
    return time.perf_counter() - began

once = read(bytearray(16 << 20), 0)
print(json.dumps({"once": once, "fresh": read(bytearray(os.path.getsize(sys.argv[1])), 1)}))
"""

LOAD = """
import json, sys, time
from pathlib import Path
import torch
from diffusers import ZImageTransformer2DModel
from lorapod.engine.families import family_named
from lorapod.engine.weights import empty
from lorapod.models import BaseModel

def now(kind):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind + ":"))

folder = Path(sys.argv[1])
family = family_named("z_image")
base = BaseModel("made", "z_image", folder, single_files={"transformer": folder / "transformer.safetensors"})
with empty():
    ZImageTransformer2DModel.from_config(ZImageTransformer2DModel.load_config(folder / "transformer"))
before = now("VmRSS")
began = time.perf_counter()
model = family.load_denoiser(base, family.experts[0], torch.device("cpu"), torch.bfloat16)
seconds = time.perf_counter() - began
assert not any(p.is_meta for p in model.parameters())
print(json.dumps({"seconds": seconds, "peak": now("VmHWM") - before}))
"""


def write_model(folder: Path, gigabytes: float) -> Path:
    """A configuration and its weights under the names of single files, random bf16."""
    import torch
    from diffusers import ZImageTransformer2DModel
    from safetensors.torch import save_file

    config = CONFIG | {"n_layers": max(1, round(gigabytes * 1e9 / BYTES_A_LAYER) - 2)}
    (folder / "transformer").mkdir()
    (folder / "transformer/config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        model = ZImageTransformer2DModel.from_config(config)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, meta in model.state_dict().items():
        shape = list(meta.shape)
        if ".attention.to_k." in name or ".attention.to_v." in name:
            continue
        if ".attention.to_q." in name:
            name, shape[0] = name.replace("to_q", "qkv"), 3 * shape[0]
        for theirs, file in (("all_x_embedder.2-1", "x_embedder"), ("all_final_layer.2-1", "final_layer"),
                             (".to_out.0.", ".out."), (".norm_q.", ".q_norm."), (".norm_k.", ".k_norm.")):  # fmt: skip
            name = name.replace(theirs, file)
        tensors[name] = torch.randint(-(1 << 15), 1 << 15, shape, dtype=torch.int16, generator=generator).view(
            torch.bfloat16
        )
    path = folder / "transformer.safetensors"
    save_file(tensors, path)
    return path


def drop_from_cache(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(code: str, argument: Path) -> str:
    ended = subprocess.run([sys.executable, "-c", code, str(argument)], capture_output=True, text=True, check=True)
    return ended.stdout.strip().splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="where the file is written, as a network volume")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        path = write_model(folder, args.gigabytes)
        size = path.stat().st_size
        found: dict[str, float] = {"gigabytes": round(size / 1e9, 3)}
        peaks = []
        for state in ("cold", "warm"):
            loads, reads, fresh = [], [], []
            for _ in range(args.rounds):
                if state == "cold":
                    drop_from_cache(path)
                read = json.loads(run(READ, path))
                if state == "cold":
                    drop_from_cache(path)
                loaded = json.loads(run(LOAD, folder))
                loads.append(loaded["seconds"])
                reads.append(read["once"])
                fresh.append(read["fresh"])
                peaks.append(loaded["peak"] / size)
            found |= {
                f"{state} load seconds": round(statistics.median(loads), 3),
                f"{state} read seconds": round(statistics.median(reads), 3),
                f"{state} time ratio": round(statistics.median(loads) / statistics.median(reads), 3),
            }
        found["warm read into fresh memory seconds"] = round(statistics.median(fresh), 3)
        found["warm time ratio to that"] = round(statistics.median(loads) / statistics.median(fresh), 3)
        found["peak memory ratio"] = round(max(peaks), 3)
    print(json.dumps(found))
    kept = found["peak memory ratio"] < MOST_MEMORY and found["cold time ratio"] < MOST_TIME
    print(
        f"Peak memory {found['peak memory ratio']:.2f} times the file (aim: under {MOST_MEMORY}); time "
        f"{found['cold time ratio']:.2f} of reading it once from disk (aim: under {MOST_TIME}): "
        f"{'kept' if kept else 'missed'}. From the page cache: {found['warm time ratio']:.2f} of reading it into one "
        f"buffer, {found['warm time ratio to that']:.2f} of reading it into fresh memory."
    )
    sys.exit(not kept)


if __name__ == "__main__":
    main()
