#!/usr/bin/env python3
"""Checks the include rules of the library's rooms: each header includes only floors below its own (or its own room).

Also: every header has `#pragma once` and starts with its contract, includes the library as <switchyard/...>, defines no macro
outside SWITCHYARD_*, and is part of no include cycle; umbrellas (the headers in no room) hold includes and nothing else, and
switchyard.hpp reaches every CPU header, and no device's or engine adapter; without_eigen.hpp the same but backend/eigen.hpp,
the one header that includes Eigen; thrust.hpp reaches every header of devices that
has no kernels, cuda.hpp also those that have, and neither Eigen.

usage: check_includes.py INCLUDE_DIR        exit 0 if all rules hold, 1 with one line a broken rule
"""

import pathlib
import re
import sys

# What each room may include besides itself. `reference` stands alone on core, so that it cannot share a mistake with the
# library it is compared with; nothing in the library includes it.
BELOW = {
    "core": set(),
    "backend": {"core"},
    "score": {"core", "backend"},
    "plan": {"core", "backend", "score"},
    "balance": {"core", "backend", "score", "plan"},
    "assignment": {"core", "backend", "score", "balance", "plan"},
    "router": {"core", "backend", "score", "balance", "plan", "assignment"},
    "dispatch": {"core", "backend", "score", "balance", "plan"},
    "formats": {"core", "backend", "score", "balance", "plan"},
    "reference": {"core"},
    "layer": {"core", "backend", "score", "balance", "plan", "assignment", "router", "dispatch", "formats"},
    "interop": {"core", "backend", "score", "balance", "plan", "assignment", "router", "dispatch", "formats"},
}
# Headers that need more than Eigen stay off the umbrella; so do the oracles, which nobody routes with.
OFF_UMBRELLA = re.compile(r"(.*/)?(thrust|cuda|device|kernel)[^/]*|backend/(measure|lane_group|threads)\.hpp|reference/.*|interop/.*")

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
DEFINE = re.compile(r"^\s*#\s*define\s+(\w+)", re.MULTILINE)
UNDEFINE = re.compile(r"^\s*#\s*undef\s+(\w+)", re.MULTILINE)


def room_of(header):
    return header.split("/")[0] if "/" in header else ""


def find_cycle(graph):
    """A list of headers that include each other in a ring, or None."""
    state = {}

    def visit(node, path):
        if state.get(node) == "done":
            return None
        if node in path:
            return path[path.index(node):] + [node]
        for after in graph.get(node, ()):
            ring = visit(after, path + [node])
            if ring:
                return ring
        state[node] = "done"
        return None

    for node in graph:
        ring = visit(node, [])
        if ring:
            return ring
    return None


def reachable(graph, start):
    seen, todo = set(), [start]
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo.extend(graph.get(node, ()))
    return seen


def check_header(root, header, graph, broken):
    text = (root / header).read_text()
    room = room_of(header)
    umbrella = not room and header != "version.hpp"
    if "#pragma once" not in text and not header.startswith("core/macros_"):
        broken.append(f"{header}: has no #pragma once")
    if not text.startswith("//"):
        broken.append(f"{header}: does not start with a comment that says what it is for")
    if room and room not in BELOW:
        broken.append(f"{header}: {room} is no room of the library (add it to BELOW in {sys.argv[0]})")
        return
    for macro in set(DEFINE.findall(text)) - set(UNDEFINE.findall(text)):
        if not macro.startswith("SWITCHYARD_"):
            broken.append(f"{header}: defines {macro}, and a macro here must start with SWITCHYARD_")
    for style, name in INCLUDE.findall(text):
        if not name.startswith("switchyard/"):
            if style == '"':
                broken.append(f'{header}: includes "{name}" in quotes')
            continue
        name = name.removeprefix("switchyard/")
        graph[header].append(name)
        if style == '"':
            broken.append(f'{header}: includes "switchyard/{name}" in quotes; write <switchyard/{name}>')
        if not (root / name).is_file():
            broken.append(f"{header}: includes {name}, which does not exist")
        elif room and name != "version.hpp" and room_of(name) not in BELOW[room] | {room}:
            broken.append(f"{header}: includes {name}, but {room} may include only "
                          f"{', '.join(sorted(BELOW[room])) or 'itself'}")
    if umbrella:
        code = re.sub(r"//[^\n]*|^\s*#\s*(include[^\n]*|pragma once)", "", text, flags=re.MULTILINE)
        if code.strip():
            broken.append(f"{header}: holds more than includes: {code.strip().splitlines()[0]}")


def main():
    root = pathlib.Path(sys.argv[1]) / "switchyard"
    headers = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.suffix in (".hpp", ".cuh"))
    broken = []
    graph = {header: [] for header in headers}
    for header in headers:
        check_header(root, header, graph, broken)
    ring = find_cycle(graph)
    if ring:
        broken.append("include cycle: " + " -> ".join(ring))
    if "switchyard.hpp" in graph:
        reached = reachable(graph, "switchyard.hpp")
        for header in headers:
            off = OFF_UMBRELLA.fullmatch(header)
            if off and header in reached:
                broken.append(f"switchyard.hpp: reaches {header}, which must stay off the umbrella")
            if not off and header not in reached:
                broken.append(f"switchyard.hpp: does not reach {header}")
        without = {"switchyard.hpp", "backend/eigen.hpp"}
        if reachable(graph, "without_eigen.hpp") != reached - without:
            difference = reachable(graph, "without_eigen.hpp") ^ (reached - without)
            broken.append(f"without_eigen.hpp: should differ from switchyard.hpp in Eigen alone, not in {', '.join(sorted(difference))}")
    for header in headers:
        if header != "backend/eigen.hpp" and re.search(r"#\s*include\s*[<\"]Eigen/", (root / header).read_text()):
            broken.append(f"{header}: includes Eigen, which only backend/eigen.hpp may")
    for umbrella, parts in {"thrust.hpp": "thrust|device", "cuda.hpp": "cuda|device|kernel"}.items():
        reached = reachable(graph, umbrella)
        for header in headers:
            if re.fullmatch(rf"(.*/)?({parts})[^/]*", header) and header not in reached and header != "cuda.hpp":
                broken.append(f"{umbrella}: does not reach {header}")
        if "backend/eigen.hpp" in reached:
            broken.append(f"{umbrella}: reaches backend/eigen.hpp, which .cu files must not see")
    for line in broken:
        print(line)
    print(f"{len(headers)} headers, {sum(map(len, graph.values()))} includes of each other, {len(broken)} broken rules")
    return 1 if broken or not headers else 0


if __name__ == "__main__":
    sys.exit(main())
