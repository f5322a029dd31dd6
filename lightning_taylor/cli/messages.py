"""What jsonargparse says about a mistake, in a line or two, with the name that was meant."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from importlib import import_module

from lightning.pytorch.cli import LightningArgumentParser

from lightning_taylor.cli.exit import nearest
from lightning_taylor.cli.shipped_configs import shipped_configs
from lightning_taylor.criteria.base import Criterion
from lightning_taylor.plan.schedule import Schedule

__all__ = ["options_of", "readable"]

RECIPES = ("ImageClassifier", "Digits", "ImageFolder", "Flowers102", "CIFAR10")
"""Classes that are imported when the command starts, and so known without a path."""
BOILERPLATE = re.compile(
    r"Does not validate against|Subtypes: |Errors:$|Given value|Not a valid subclass of|Subclass types expect|"
    r"a class path \(str\)|a dict with|Expected a <class 'NoneType'>|Expected a path but "
)
"""Lines of jsonargparse's messages about a union that are true of every wrong value."""

LONGEST = 80
"""Of a value that is repeated."""


def options_of(parser: LightningArgumentParser) -> list[str]:
    """Every option of a parser as YAML writes it: ``trainer.max_epochs``."""
    return [name.removeprefix("--") for action in parser._actions for name in action.option_strings]


def readable(message: str, options: Sequence[str] = ()) -> str:
    """What one of jsonargparse's messages comes to, with the nearest of the parser's options.

    About a union it says why each of its types was refused. The one that got furthest is the one that was meant.
    """
    complaints: dict[tuple[tuple[str, str], ...], list[str]] = {}
    within: list[tuple[int, tuple[str, str]]] = []
    for line in filter(str.strip, message.splitlines()):
        text = line.lstrip(" ").removeprefix("- ")
        indent = len(line) - len(line.lstrip(" "))
        within = [frame for frame in within if frame[0] < indent]
        if place := re.match(r"""(Parser key|Problem with given class_path) ["'](.+)["']:$""", text):
            within.append((indent, (place[1], place[2])))
        elif not BOILERPLATE.match(text):
            complaints.setdefault(tuple(place for _, place in within), []).append(text)
    if not complaints:
        return message
    places = max(complaints, key=len)
    key = ".".join(name for kind, name in places if kind == "Parser key")
    owner = next((name for kind, name in reversed(places) if kind != "Parser key"), "")
    texts = dict.fromkeys(_explain(text, owner, key, options) for text in complaints[places])
    said = (f"{key}: " if key else "") + "; ".join(texts)
    given = re.findall(r"Given value: (.+)", message)
    told = not given or len(given[0]) > LONGEST or re.search(rf"(?<!\w){re.escape(given[0])}(?!\w)", said)
    return said if told or "Expected" not in said else f"{said}. Got value: {given[0]}"


def _explain(text: str, owner: str, key: str, options: Sequence[str]) -> str:
    """One complaint of jsonargparse's about an argument of the class ``owner``, with the names it could have meant."""
    if hit := re.match("Option '(.+)' is not accepted$", text):
        return f"{owner.split('.')[-1]} has no option {hit[1]!r}{nearest(hit[1], _parameters(owner))}"
    if hit := re.match("module '(.+)' has no attribute '(.+)'$", text):
        return f"{text}{nearest(hit[2], [name for name in dir(import_module(hit[1])) if name[0] != '_'])}"
    if hit := re.match(r"Expected a dot import path string: (\S+)$", text):
        return f"no class is called {hit[1]!r}; give its import path{nearest(hit[1], _classes(key))}"
    if hit := re.match(r"(?:Subcommand '\w+' does not accept option |unrecognized arguments: -*)'?([^\s'=]+)", text):
        if hit[1] in shipped_configs():
            return f"no option {hit[1]!r}; did you mean --config {hit[1]}?"
        if near := nearest(hit[1], options):
            return f"no option {hit[1]!r}{near}"
        part, known = hit[1].split(".")[0], {option.split(".")[0] for option in options}
        return f"no option {(hit[1] if part in known else part)!r}{nearest(part, options)}"
    text = re.sub(r"a (?:typing\.)?Literal\[(.+?)\]", r"one of \1", text)
    return re.sub(r"(?:a )?<class '(?:\w+\.)*(\w+)'>", r"\1", text)


def _classes(key: str) -> list[str]:
    """Names of classes that go without a path where a setting takes one."""
    base = {"schedule": Schedule, "criterion": Criterion}.get(key.rpartition(".")[2])
    return [kind.__name__ for kind in _subclasses(base) if kind.__name__[0] != "_"] if base else list(RECIPES)


def _subclasses(base: type) -> Iterator[type]:
    for kind in base.__subclasses__():
        yield kind
        yield from _subclasses(kind)


def _parameters(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    try:
        return list(inspect.signature(getattr(import_module(module), name)).parameters)
    except (ImportError, AttributeError, ValueError, TypeError):
        return []
