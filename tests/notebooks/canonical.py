"""The one form in which a notebook is committed, so that running it again without a change leaves no diff.

What changes from run to run without meaning anything is removed (execution times, widget models, the text chunks of a
PNG) or masked (addresses of objects, the kernel's temporary file names). What a reader sees stays.
"""

import base64
import copy
import re
import struct

import nbformat

from visualizations.both_modes import SAVED_FIGURE

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
CELL_METADATA = ("tags", "jupyter", "slideshow")
ADDRESS = re.compile(r"(?<=\bat )0x[0-9a-fA-F]{6,}")  # of an object; other numbers in hexadecimal stay
KERNEL_FILE = re.compile(r"\S*[/\\]ipykernel_\d+[/\\]\d+\.py")
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_TEXT_CHUNKS = (b"tEXt", b"iTXt", b"zTXt", b"tIME")


def joined(text: str | list[str]) -> str:
    """nbformat stores text as one string or as a list of lines; this is the string."""
    return text if isinstance(text, str) else "".join(text)


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def mask(text: str) -> str:
    """Text without the parts that name this run: addresses and the files a kernel compiles cells from."""
    return KERNEL_FILE.sub("<cell>", ADDRESS.sub("0x…", text))


def without_redrawn_lines(text: str) -> str:
    """What a terminal would show: of a line redrawn with carriage returns (a progress bar), the last state."""
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))


def without_png_text(encoded: str) -> str:
    """A base64 PNG without the chunks that carry dates and version strings; the pixels are not touched."""
    raw = base64.b64decode(encoded)
    if not raw.startswith(PNG_SIGNATURE):
        return encoded
    kept, at = PNG_SIGNATURE, len(PNG_SIGNATURE)
    while at < len(raw):
        (length,) = struct.unpack(">I", raw[at : at + 4])
        end = at + 12 + length  # length, kind, data, checksum
        if raw[at + 4 : at + 8] not in PNG_TEXT_CHUNKS:
            kept += raw[at:end]
        at = end
    return base64.b64encode(kept).decode()


def canonical_data(data) -> dict:
    """The MIME bundle of one output. A widget's view goes when another form of it (PNG, text) is beside it, and so does the
    HTML of a figure, which is made of the two pictures that stay."""
    kept = {}
    for mime, value in sorted(data.items()):
        if (mime == WIDGET_VIEW and len(data) > 1) or (mime == "text/html" and SAVED_FIGURE in data):
            continue
        if mime == "image/png":
            value = without_png_text(joined(value).replace("\n", ""))
        elif isinstance(value, (str, list)):
            value = mask(joined(value))
        kept[mime] = value
    return kept


def canonical_outputs(outputs) -> list:
    result = []
    for output in outputs:
        if output.output_type == "stream":
            text = mask(joined(output.text))
            if result and result[-1].output_type == "stream" and result[-1].name == output.name:
                result[-1].text += text
                continue
            output.text = text
        elif output.output_type == "error":
            output.evalue = mask(output.evalue)
            output.traceback = [mask(ANSI.sub("", line)) for line in output.traceback]
        else:
            output.data = nbformat.from_dict(canonical_data(output.data))
            output.metadata = nbformat.from_dict({})
            output.pop("transient", None)
        result.append(output)
    for output in result:  # after streams are joined: one progress bar may have come in many pieces
        if output.output_type == "stream":
            output.text = without_redrawn_lines(output.text)
    return result


def canonical(notebook):
    """A canonical copy of `notebook`; the argument is left as it is.

    Cell ids are kept, execution counts run 1..n over the cells that were executed, and metadata is cut to what
    decides how a cell runs and shows.
    """
    notebook = copy.deepcopy(notebook)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata = nbformat.from_dict({
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    })
    executed = 0
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k in CELL_METADATA and v})
        cell.source = joined(cell.source).rstrip()
        if cell.cell_type != "code":
            continue
        cell.outputs = canonical_outputs(cell.outputs)
        ran = bool(cell.outputs) or cell.execution_count is not None
        executed += ran
        cell.execution_count = executed if ran else None
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = cell.execution_count
    return notebook


def dumps(notebook) -> str:
    """The bytes that are committed."""
    return nbformat.writes(notebook, ensure_ascii=False).rstrip("\n") + "\n"
