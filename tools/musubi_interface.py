"""The options of musubi-tuner's scripts, read from a checkout: `python tools/musubi_interface.py DIR [--write]`.

Checks that `src/lorapod/trainers/musubi/interface.toml` says what the checkout says, or writes it. The functions that make
the argument parsers are taken out of the sources and run by themselves, since importing the scripts needs torch and more.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import difflib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomlkit

TABLE = Path(__file__).parents[1] / "src/lorapod/trainers/musubi/interface.toml"
COMMON = {
    "cache_latents": "cache_latents.py",
    "cache_text": "cache_text_encoder_outputs.py",
    "train": "training/parser_common.py",
}
SUFFIXES = {"cache_latents": "cache_latents", "cache_text": "cache_text_encoder_outputs", "train": "train_network"}
FAMILIES = {
    "wan": "wan",
    "qwen_image": "qwen_image",
    "z_image": "zimage",
    "flux": "flux_kontext",
    "flux2": "flux_2",
}
HELPERS = {"qwen_image_utils": "qwen_image/qwen_image_utils.py", "flux2_utils": "flux_2/flux2_utils.py"}


class Anything:
    """Stands for a module or a name that a parser mentions and does not need."""

    def __getattr__(self, name: str) -> Any:
        return Anything()

    def __call__(self, *words: Any, **keys: Any) -> Any:
        return Anything()

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def keys(self) -> list[str]:
        return []


class Names(dict[str, Any]):
    """Globals in which every name that nothing defines is `Anything`."""

    def __missing__(self, name: str) -> Any:
        return getattr(builtins, name, None) or Anything()


def functions(path: Path) -> dict[str, Any]:
    """The functions of a source file that have to do with argument parsers, and its constants, run apart from the rest."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    wanted = [
        node for node in module.body
        if (isinstance(node, ast.FunctionDef) and ("parser" in node.name or node.name.startswith("_add_") or "args" in node.name))
        or (isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant | ast.List | ast.Tuple | ast.Dict))
    ]  # fmt: skip
    names = Names(argparse=argparse)
    for node in wanted:
        node = strip_annotations(node)
        try:
            exec(compile(ast.Module([node], []), str(path), "exec"), names)
        except NameError:  # a constant made from another module's
            continue
    return names


def strip_annotations(node: ast.stmt) -> ast.stmt:
    for part in ast.walk(node):
        if isinstance(part, ast.arg):
            part.annotation = None
        if isinstance(part, ast.FunctionDef):
            part.returns = None
    return node


def parser_of(source: Path, kind: str, scripts: str | None) -> argparse.ArgumentParser:
    """The parser of a stage; that of all architectures for None."""
    base = functions(source / COMMON[kind])
    choices = wan_tasks(source)
    parser: argparse.ArgumentParser = base["setup_parser_common"]()
    if scripts:
        script = source / f"{scripts}_{SUFFIXES[kind]}.py"
        names = functions(script)
        names["WAN_CONFIGS"] = dict.fromkeys(choices)  # its values need torch
        for module, helper in HELPERS.items():
            known = functions(source / helper)
            names[module] = argparse.Namespace(**{k: v for k, v in known.items() if k.endswith("args")})
        for name, value in list(names.items()):
            if name.endswith("_setup_parser") and callable(value) and not isinstance(value, Anything):
                parser = value(parser)
        for module, function in added_in_main(script):
            getattr(names[module], function)(parser)
    return parser


def added_in_main(script: Path) -> Iterator[tuple[str, str]]:
    """Helpers that a script's `main` itself calls on its parser, as (module, function)."""
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name == "main":
            for call in (each for each in ast.walk(node) if isinstance(each, ast.Call)):
                function = call.func
                if (
                    isinstance(function, ast.Attribute)
                    and isinstance(function.value, ast.Name)
                    and function.value.id in HELPERS
                    and [getattr(each, "id", "") for each in call.args] == ["parser"]
                ):
                    yield function.value.id, function.attr


def wan_tasks(source: Path) -> list[str]:
    """Keys of WAN_CONFIGS, the values of --task."""
    module = ast.parse((source / "wan/configs/__init__.py").read_text(encoding="utf-8"))
    for node in ast.walk(module):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "WAN_CONFIGS":
            assert isinstance(node.value, ast.Dict)
            return [key.value for key in node.value.keys if isinstance(key, ast.Constant)]
    raise SystemExit("WAN_CONFIGS was not found")


def said(action: argparse.Action) -> str:
    if action.nargs == 0:
        return "flag"
    if action.choices:
        text = "one of " + ", ".join(str(choice) for choice in action.choices)
    else:
        text = {int: "int", float: "float"}.get(action.type, "str")  # type: ignore[arg-type]
    return text + ("..." if action.nargs in ("*", "+") else "")


def options(parser: argparse.ArgumentParser) -> dict[str, str]:
    found = {}
    for action in parser._actions:
        name = next((o for o in action.option_strings if o.startswith("--")), None)
        if name and name != "--help":
            found[name.removeprefix("--")] = said(action)
    return dict(sorted(found.items()))


def table(source: Path, commit: str) -> str:
    document = tomlkit.document()
    document.add(
        tomlkit.comment("Options of musubi-tuner's scripts; written by tools/musubi_interface.py from a checkout.")
    )
    document["commit"] = commit
    general = {
        "caption_extension": "str",
        "batch_size": "int",
        "num_repeats": "int",
        "enable_bucket": "bool",
        "bucket_no_upscale": "bool",
    }
    document["general"] = general
    document["control"] = {"no_resize_control": "bool", "control_resolution": "int..."}
    for kind in COMMON:
        common = options(parser_of(source, kind, None))
        section: dict[str, Any] = {"common": common}
        for family, scripts in FAMILIES.items():
            section[family] = {k: v for k, v in options(parser_of(source, kind, scripts)).items() if k not in common}
        document[kind] = section
    return tomlkit.dumps(document)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("checkout", type=Path)
    arguments.add_argument("--write", action="store_true")
    given = arguments.parse_args()
    command = ["git", "-C", str(given.checkout), "rev-parse", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    now = table(given.checkout / "src/musubi_tuner", commit)
    if given.write:
        TABLE.write_text(now, encoding="utf-8")
        return 0
    before = TABLE.read_text(encoding="utf-8")
    lines = difflib.unified_diff(
        before.splitlines(), now.splitlines(), "interface.toml", "the checkout", lineterm="", n=0
    )
    difference = "\n".join(lines)
    sys.stdout.write(f"{difference or 'interface.toml says what the checkout says.'}\n")
    return 1 if difference else 0


if __name__ == "__main__":
    sys.exit(main())
