"""Which methods there are: our own, and those that other packages bring as entry points.

A package adds a method with an entry point of the group "faceprior.methods" whose name is the method's and whose
value is a `Method`. Entry points are loaded when their method is asked for, or all methods are.
"""

from __future__ import annotations

from collections import defaultdict
from importlib.metadata import EntryPoint, entry_points

from faceprior.errors import OptionError, one_line
from faceprior.methods import bicubic, corrector, ddnm, ddrm, diffpir, dpi, dps, ilvr, lanczos, pigdm, repaint, sdedit
from faceprior.methods.method import Method

ENTRY_POINTS = "faceprior.methods"

OWN = {
    module.METHOD.name: module.METHOD
    for module in (bicubic, lanczos, corrector, sdedit, ilvr, repaint, ddnm, ddrm, dps, pigdm, diffpir, dpi)
}
"""The methods of this package, by name."""


def find_method(name: str) -> Method:
    """Return a method by name.

    Raises:
        OptionError: it is unknown, its package is broken, or two packages bring it.
    """
    if name in OWN:
        return OWN[name]
    found = _others().get(name, [])
    if not found:
        raise OptionError(f"method {name!r} is not known; choose {', '.join(method_names())}")
    return _load(name, found)


def method_names() -> list[str]:
    """Return the names of all methods, of those too that may turn out to be broken."""
    return [*OWN, *(name for name in _others() if name not in OWN)]


def all_methods() -> tuple[dict[str, Method], list[str]]:
    """Return every method that works, by name, and what is wrong with the others, a line each."""
    methods, problems = dict(OWN), []
    for name, found in _others().items():
        if name in OWN:  # ours goes on working
            problems.append(f"method {name!r} of {_packages(found)} has the name of one of faceprior's own")
            continue
        try:
            methods[name] = _load(name, found)
        except OptionError as error:
            problems.append(str(error))
    return methods, problems


def _others() -> dict[str, list[EntryPoint]]:
    found = defaultdict(list)
    for point in entry_points(group=ENTRY_POINTS):
        found[point.name].append(point)
    return dict(sorted(found.items()))


def _load(name: str, found: list[EntryPoint]) -> Method:
    packages = _packages(found)
    if len(found) > 1:
        raise OptionError(f"method {name!r} is in several packages: {packages}; uninstall all but one")
    try:
        method = found[0].load()
    except Exception as error:  # whatever another package does wrong is its error, not ours
        raise OptionError(
            f"method {name!r} of {packages} cannot be loaded ({one_line(error)}); update or uninstall it"
        ) from error
    if not isinstance(method, Method) or method.name != name:
        what = f"a method named {method.name!r}" if isinstance(method, Method) else f"a {type(method).__name__}"
        raise OptionError(f"method {name!r} of {packages} is {what}, not a faceprior.methods.Method of that name")
    return method


def _packages(found: list[EntryPoint]) -> str:
    names = sorted({point.dist.name if point.dist else point.value for point in found})
    return f"package {' and '.join(names)}" if len(names) == 1 else f"packages {' and '.join(names)}"
