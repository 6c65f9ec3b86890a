"""Where a node of an ONNX file comes from: module and line."""

from __future__ import annotations

import ast
import re
from pathlib import PureWindowsPath

from onnx import NodeProto

from llmc.compiler.graph import Source


def place(node: NodeProto, at: Source) -> Source:
    """The node's name for an error."""
    return Source(node.name) if node.name else at


def source(node: NodeProto) -> Source:
    """Module path and line: the new exporter's metadata, or the old one's `/encoder/layer.0/Add` names."""
    facts = {p.key: p.value for p in node.metadata_props}
    trace = re.findall(r'File "([^"]+)", line (\d+)', facts.get("pkg.torch.onnx.stack_trace", ""))
    line = f"{PureWindowsPath(trace[-1][0]).name}:{trace[-1][1]}" if trace else ""
    try:
        scopes = ast.literal_eval(facts.get("pkg.torch.onnx.name_scopes", "[]"))
    except (ValueError, SyntaxError):
        scopes = []
    if isinstance(scopes, list) and len(scopes) > 1:
        return Source(str(scopes[-2]), line)  # the last scope is the node's own
    path = node.name.strip("/").split("/")
    return Source(".".join(path[:-1]) or node.name, line)
