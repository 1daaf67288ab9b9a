"""matplotlib's SVG in fewer bytes: the same picture, without what it does not need."""

import re
from itertools import count
from xml.etree import ElementTree

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
FONTS = "text{font-family:DejaVu Sans,Verdana,Arial,sans-serif}"


def small(svg: str) -> str:
    """Coordinates to a tenth of a point, each style once, and no group, comment or name that nothing refers to."""
    for prefix, uri in (("", SVG), ("xlink", XLINK)):
        ElementTree.register_namespace(prefix, uri)
    root = ElementTree.fromstring(svg)
    styles: dict[str, str] = {}
    used = set(re.findall(r'#([\w-]+)[")]', svg))
    names = dict(zip(sorted(used, key=svg.index), (f"i{n}" for n in count()), strict=False))
    for parent in list(root.iter()):
        flatten(parent)
    for element in root.iter():
        element.text, element.tail = (text if text and text.strip() else None for text in (element.text, element.tail))
        attributes = element.attrib
        if "style" in attributes:
            style = re.sub(r"font-family:[^;]*;? ?|(?<=[:;]) ", "", attributes.pop("style")).strip("; ")
            attributes["class"] = styles.setdefault(style, f"s{len(styles)}")
        if attributes.get("transform", "").startswith("rotate(-0 "):
            del attributes["transform"]
        if "id" in attributes:
            name = names.get(attributes.pop("id"))
            attributes |= {"id": name} if name else {}
        for key, value in attributes.items():
            attributes[key] = shorter(
                key, re.sub(r"#([\w-]+)", lambda found: f"#{names.get(found[1], found[1])}", value)
            )
    sheet = next(element for element in root.iter(f"{{{SVG}}}style"))
    sheet.text = "".join([sheet.text or "", FONTS, *(f".{name}{{{style}}}" for style, name in styles.items())])
    return re.sub(r">(?=<(path|text|use|image|g|defs)\b)", ">\n", ElementTree.tostring(root, encoding="unicode")) + "\n"


def flatten(parent: ElementTree.Element) -> None:
    """Replace nameless groups by their children."""
    children = []
    for child in parent:
        flatten(child)
        if child.tag == f"{{{SVG}}}g" and not child.attrib.keys() - {"id"}:
            children += list(child)
        elif child.tag != f"{{{SVG}}}metadata":
            children.append(child)
    parent[:] = children


def shorter(key: str, value: str) -> str:
    if key == "d":
        return relative(value)
    if key in ("x", "y", "width", "height"):
        return re.sub(r"(\.\d)\d+", r"\1", value)
    return re.sub(r"\s", "", value) if key.endswith("href") else value


def relative(path: str) -> str:
    """A path of straight lines with each point as its distance from the last, in tenths; other paths as they are."""
    tokens = path.split()
    if set(re.findall("[A-Za-z]", path)) - set("MLz"):
        return " ".join(tokens)
    out, x, y, start, i = [], 0, 0, (0, 0), 0  # x, y in tenths, as rounded: no error adds up
    while i < len(tokens):
        command = tokens[i]
        if command == "z":
            out.append("z")
            (x, y), i = start, i + 1
            continue
        new_x, new_y = (round(10 * float(token)) for token in tokens[i + 1 : i + 3])
        out.append(f"{command.lower()}{new_x - x:d} {new_y - y:d}")
        x, y, i = new_x, new_y, i + 3
        start = (x, y) if command == "M" else start
    text = re.sub(r"-?\d+", lambda number: f"{int(number[0]) / 10:g}", "".join(out))
    return re.sub(r"\b0\.", ".", re.sub(r"(?<=\d)l", " ", text).replace(" -", "-"))  # points after m are lines to them
