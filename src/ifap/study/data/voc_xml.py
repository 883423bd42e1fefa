"""Annotations in Pascal VOC's XML format, which others use as well: one file an image, one box an object."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ifap.study.data.scenes import UNKNOWN, Findings

Row = tuple[tuple[float, float, float, float], int, bool]
"""Left, top, right and bottom edge in pixels, the class, and whether the box does not count."""


def annotation(
    path: Path, file: str, classes: Mapping[str, int], findings: Findings
) -> tuple[tuple[int, int], list[Row]]:
    """Read the annotation of one image.

    Parameters
    ----------
    path : Path
        The file.
    file : str
        What it is called in messages.
    classes : mapping of str to int
        The class of each name.
    findings : Findings
        Where objects of another name are noted; they are left out.

    Returns
    -------
    shape : tuple of int
        Width and height of the image in pixels, as the file states them.
    rows : list of Row
        Its boxes.

    Raises
    ------
    ValueError
        If something is missing. A damaged file raises errors of the XML parser too.
    """
    tree = ET.parse(path).getroot()
    size = tree.find("size")
    if size is None:
        raise ValueError("nothing is said of the image's size")
    shape = int(_value(size, "width")), int(_value(size, "height"))
    return shape, list(_objects(tree, file, classes, findings))


def as_xml(
    name: str, shape: tuple[int, int], objects: Iterable[tuple[tuple[int, int, int, int], str]]
) -> ET.ElementTree[ET.Element]:
    """Return the annotation of an image.

    Parameters
    ----------
    name : str
        The file of the image.
    shape : tuple of int
        Its width and height.
    objects : iterable of (edges, name)
        Left, top, right and bottom edge of each object in pixels, and the name of its class.
    """
    root = ET.Element("annotation")
    ET.SubElement(root, "filename").text = name
    size = ET.SubElement(root, "size")
    for key, value in zip(("width", "height", "depth"), (*shape, 3), strict=True):
        ET.SubElement(size, key).text = str(value)
    for (left, top, right, bottom), word in objects:
        item = ET.SubElement(root, "object")
        ET.SubElement(item, "name").text = word
        ET.SubElement(item, "difficult").text = "0"
        box = ET.SubElement(item, "bndbox")
        for key, edge in {"xmin": left + 1, "ymin": top + 1, "xmax": right, "ymax": bottom}.items():
            ET.SubElement(box, key).text = str(edge)
    return ET.ElementTree(root)


def _objects(tree: ET.Element, file: str, classes: Mapping[str, int], findings: Findings) -> Iterator[Row]:
    for item in tree.iter("object"):
        name, box = (item.findtext("name") or "").strip(), item.find("bndbox")
        if box is None:
            raise ValueError("an object has no box")
        if name not in classes:
            findings.note(UNKNOWN, file)
            continue
        left, top, right, bottom = (_value(box, key) for key in ("xmin", "ymin", "xmax", "ymax"))
        # The first pixel is number 1, and the last one belongs to the box.
        yield (left - 1, top - 1, right, bottom), classes[name], item.findtext("difficult", "0").strip() == "1"


def _value(parent: ET.Element, key: str) -> float:
    text = parent.findtext(key)
    if text is None:
        raise ValueError(f"<{parent.tag}> has no <{key}>")
    return float(text)
