"""Compares what lorapod says that diffusion-pipe reads with what its sources read.

    python tools/diffusion_pipe_interface.py DIR     DIR: a checkout

Fails, naming them, where sources read a key that `interface.toml` lacks, or where it holds one that no source reads.
Constructors of optimizers outside the checkout are not looked at. A move to another commit of a trainer starts with this.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from lorapod.trainers.diffusion_pipe.interface import interface

READERS = {"get", "pop", "setdefault"}
MODELS = {
    "flux": ["models/flux.py"],
    "sdxl": ["models/sdxl.py"],
    "wan": ["models/wan/wan.py", "utils/common.py"],
    "qwen_image": ["models/qwen_image.py"],
    "z_image": ["models/z_image.py", "models/base.py"],
}


def name_of(node: ast.expr) -> str:
    """What a table is called where it is read: a variable's or an attribute's name, or the key that it came from."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return f"[{node.slice.value}]"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get" and node.args:
        return f"[{node.args[0].value}]" if isinstance(node.args[0], ast.Constant) else ""
    return ""


def keys_read(files: list[Path]) -> dict[str, set[str]]:
    """Table to the keys that are read from it in these files."""
    found: dict[str, set[str]] = defaultdict(set)
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                found[name_of(node.value)].add(str(node.slice.value))
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in READERS:
                if node.args and isinstance(node.args[0], ast.Constant):
                    found[name_of(node.func.value)].add(str(node.args[0].value))
            elif (
                isinstance(node, ast.Compare)
                and isinstance(node.left, ast.Constant)
                and isinstance(node.ops[0], ast.In | ast.NotIn)
            ):
                found[name_of(node.comparators[0])].add(str(node.left.value))
    return found


def differences(checkout: Path) -> list[str]:
    """What the table and the sources say differently."""
    table, said = interface(), []
    sources = [checkout / name for name in ("train.py", "utils/saver.py", "models/base.py", "utils/dataset.py")]
    everything = keys_read([*sources, *(checkout / name for names in MODELS.values() for name in names)])
    own = {"_class_name", "_diffusers_version"}  # of a model's config.json

    def compare(name: str, read: set[str], known: set[str], both_ways: bool = True) -> None:
        said.extend(f"{name}: the sources read {key}, the table lacks it" for key in sorted(read - known))
        if both_ways:
            said.extend(f"{name}: the table holds {key}, no source reads it" for key in sorted(known - read))

    main = keys_read(sources)["config"] - own
    compare("main", main | {"reentrant_activation_checkpointing"}, set(table["main"]) | set(table["dead"]["main"]))
    for kind, names in MODELS.items():
        read = keys_read([checkout / name for name in names])
        common = keys_read([checkout / "train.py"])
        keys = read["model_config"] | common["model_config"] | common["[model]"]
        if kind != "z_image":
            keys -= {"diffusion_model_dtype"}
        if kind not in ("wan",):
            keys -= {"cache_text_embeddings"}
        if kind in ("sdxl", "z_image"):
            keys -= {"transformer_dtype"}
        compare(f"model of {kind}", keys, set(table["model"]["common"]) | set(table["model"][kind]))
    adapter = everything["adapter_config"] | everything["[adapter]"]
    compare("adapter", adapter - {"alpha"}, set(table["adapter"]))
    compare("monitoring", everything["[monitoring]"], set(table["monitoring"]))
    compare("dataset", everything["dataset_config"], set(table["dataset"]))
    compare("directory", everything["directory_config"], set(table["directory"]))
    return said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, metavar="DIR")
    checkout: Path = parser.parse_args().checkout
    asked = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    said = differences(checkout)
    if asked.returncode == 0 and asked.stdout.strip() != interface()["commit"]:
        print(f"The checkout is at {asked.stdout.strip()}, the table was read from {interface()['commit']}")
    for line in said:
        print(line)
    print("They agree." if not said else f"{len(said)} differences")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
