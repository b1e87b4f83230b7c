"""Groups of faces, by the labels that came with them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from faceprior.errors import OptionError

AGE_BANDS = ((12, "0-12"), (29, "13-29"), (59, "30-59"), (116, "60+"))
"""Last year of each band and its name."""

_UTK_NAME = re.compile(r"(?P<age>\d{1,3})_(?P<gender>[01])_(?P<group>[0-4])_")
_UTK_GENDERS = ("male", "female")
_UTK_GROUPS = ("White", "Black", "Asian", "Indian", "other")


def face_labels(source: str, terms: str, labels: Mapping[str, str]) -> dict[str, str]:
    """Return everything that a packed face can be grouped by.

    Args:
        source: collection that it belongs to.
        terms: what the collection's licence allows.
        labels: further columns of the index that it was packed with. For the source "utk" the `original` name
            gives `age` (a band), `gender` and `group`: apparent ones, as UTKFace estimates them.
    """
    derived = utk_labels(labels.get("original", "")) if source == "utk" else {}
    return {"source": source, "terms": terms, **derived, **labels}


def utk_labels(original: str) -> dict[str, str]:
    """Read age, apparent gender and apparent group from a UTKFace file name, age_gender_group_date.jpg.

    Source: https://susanqq.github.io/UTKFace/ (gender 0 male, 1 female; group 0 White, 1 Black, 2 Asian,
    3 Indian, 4 other). A few names lack a part; they give no label.
    """
    found = _UTK_NAME.match(original)
    if found is None:
        return {}
    age = int(found["age"])
    return {
        "age": next((name for last, name in AGE_BANDS if age <= last), AGE_BANDS[-1][1]),
        "gender": _UTK_GENDERS[int(found["gender"])],
        "group": _UTK_GROUPS[int(found["group"])],
    }


def group_faces(labels: list[dict[str, str]], by: str) -> dict[str, list[int]]:
    """Return the positions of the faces of each value of a label; faces without the label are in none.

    Raises:
        OptionError: no face has it.
    """
    groups: dict[str, list[int]] = {}
    for index, own in enumerate(labels):
        if by in own:
            groups.setdefault(own[by], []).append(index)
    if not groups:
        known = ", ".join(sorted({name for own in labels for name in own}))
        raise OptionError(
            f"no face has the label {by!r}; there are {known}. Labels are the columns of index.csv when the data"
            " is packed: `faceprior data pack` again after adding one"
        )
    return dict(sorted(groups.items()))
