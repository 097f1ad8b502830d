"""The table of what runs where, from what the tests of a build showed.

    support_matrix.py BUILD --check PAGE...   says where the tables in the pages differ from it, and then exits with 1
    support_matrix.py BUILD --write PAGE...   puts it between <!-- matrix --> and <!-- /matrix --> in the pages

BUILD is a build folder whose tests have all run: `cmake --build BUILD && ctest --test-dir BUILD`. Each of them leaves a
file that says which operations it exercised on which backend, and that it ended well (tests/support/claims.hpp). A test
that left none, failed, or was built anew since is an error, with 2, as is a page without the marks.

    --recorded FILE    for a build that has no GPU: what the tests showed on one, as bench/gpu_visit.sh wrote it

A build has not every column: no CUDA without nvcc, no TBB without its library, and CUDA runs where there is a GPU. The
columns it has not stay as they are in the pages, and the check names them as not compared.
"""
import argparse
import json
import pathlib
import re
import subprocess
import sys

# In the claims; in the table; what stands in its cells; the tests that make it.
COLUMNS = [
    ("Eigen seq", "Eigen, `seq`", "tested", ""),
    ("Eigen par", "Eigen, `par` or a pool", "tested", ""),
    ("Thrust CPP", "Thrust CPP", "tested", "thrust_cpp/"),
    ("Thrust OMP", "Thrust OMP", "tested", "thrust_omp/"),
    ("Thrust TBB", "Thrust TBB", "tested", "thrust_tbb/"),
    ("CUDA compiled", "CUDA, by nvcc", "compiled", "gpu/"),
    ("CUDA emulated", "CUDA, emulated", "emulated", "simt"),
    ("CUDA run", "CUDA, on a GPU", "run on {device}", "gpu/"),
]
NOTHING = "-"
NEVER_RUN = "never run"
NOT_SHOWN = "no passing run"  # there was a GPU, and no test case that passed there showed it
BEGIN, END = "<!-- matrix -->", "<!-- /matrix -->"
OPERATIONS_HEADER = pathlib.Path(__file__).resolve().parent.parent / "support" / "claims.hpp"


class Unusable(Exception):
    """A sentence that says why no table can be made or compared."""


def operations_of(header):
    """The titles of the rows, in the order in which the C++ header lists them."""
    body = re.search(r"string_view matrix_rows\[\] = \{(.*?)\};", header, re.S)
    if body is None:
        raise Unusable("no list of operations in the header of the claims")
    return re.findall(r'"([^"]*)"', body.group(1))


def tests_of(build):
    """Name, program and file of claims of every CTest test that leaves one."""
    listed = subprocess.run(["ctest", "--show-only=json-v1", "--test-dir", str(build)], capture_output=True, text=True)
    if listed.returncode != 0 or not listed.stdout.startswith("{"):
        raise Unusable(f"{build} holds no tests")
    for test in json.loads(listed.stdout)["tests"]:
        for variable in next((p["value"] for p in test.get("properties", []) if p["name"] == "ENVIRONMENT"), []):
            name, _, value = variable.partition("=")
            if name == "SWITCHYARD_COVERS":
                yield test["name"], test.get("command", [None])[0], pathlib.Path(value)


def lines_of(name, program, claims):
    """What a test left, as pairs; it must be the last word of the program as it is now."""
    if program is None or not pathlib.Path(program).exists():
        raise Unusable(f"{name} is not built")
    if not claims.exists():
        raise Unusable(f"{name} has not run")
    if claims.stat().st_mtime < pathlib.Path(program).stat().st_mtime:
        raise Unusable(f"{name} was built anew since it ran")
    lines = [tuple(line.split("\t", 1)) for line in claims.read_text().splitlines()]
    if not lines or lines[-1] not in (("end", "passed"), ("end", "skipped")):
        raise Unusable(f"{name} did not end well")
    return lines[:-1]


def recorded_lines(path):
    """Claims of a run on a GPU; lines that begin with # are about it."""
    if not path.exists():
        raise Unusable(f"there is no record {path}")
    lines = [tuple(line.split("\t", 1)) for line in path.read_text().splitlines() if line and not line.startswith("#")]
    if any(len(line) != 2 or line[0] not in ("device", "CUDA run") for line in lines) or not lines:
        raise Unusable(f"{path} is no record of a run on a GPU")
    return lines


class Shown:
    """What the tests of a build showed: claims, columns that it can make, the GPU."""

    def __init__(self, tests, operations, recorded=None):
        self.claims = set()
        self.devices = set()
        self.operations = operations
        names = []
        for name, program, path in tests:
            names.append(name)
            self.take(name, lines_of(name, program, path))
        if not names:
            raise Unusable("no test leaves claims")
        self.columns = {c[0] for c in COLUMNS if any(name.startswith(c[3]) for name in names)}
        if recorded and not self.devices:
            self.take(recorded, recorded_lines(recorded))
        if not self.devices:
            self.columns.discard("CUDA run")
        elif recorded:
            self.columns.add("CUDA run")

    def take(self, name, lines):
        for column, value in lines:
            if column == "device":
                self.devices.add(value)
            elif column not in [c[0] for c in COLUMNS] or value not in self.operations:
                raise Unusable(f"{name} claims '{value}' on '{column}', which the table has not")
            else:
                self.claims.add((value, column))

    def cell(self, operation, column, word):
        if (operation, column) in self.claims:
            return word.format(device=", ".join(sorted(self.devices)))
        if column == "CUDA run" and any((operation, c) in self.claims for c in ("CUDA compiled", "CUDA emulated")):
            return NOT_SHOWN if self.devices else NEVER_RUN
        return NOTHING


def parts_of(page, text):
    """The page before, in and behind the marks."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise Unusable(f"{page} has no {BEGIN} with one {END} behind it")
    before, rest = text.split(BEGIN)
    inside, behind = rest.split(END)
    return before, inside, behind


def parsed(table):
    """{(row's title, column's title): cell} of a table in Markdown, and the titles."""
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.strip().splitlines()]
    if len(rows) < 2:
        return {}, [], []
    columns = rows[0][1:]
    cells = {(row[0], column): cell for row in rows[2:] for column, cell in zip(columns, row[1:])}
    return cells, [row[0] for row in rows[2:]], columns


def wanted_cell(shown, operation, column, title, word, standing):
    """A cell as this build has it, or, in a column that it has not, as it stands."""
    if column in shown.columns:
        return shown.cell(operation, column, word)
    stands = standing.get((operation, title))
    if column == "CUDA run" and not (stands or "").startswith("run on"):
        return shown.cell(operation, column, word)
    return stands or NOTHING


def table_of(shown, operations, standing):
    lines = ["| | " + " | ".join(c[1] for c in COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for operation in operations:
        cells = [wanted_cell(shown, operation, name, title, word, standing) for name, title, word, _ in COLUMNS]
        lines.append(f"| {operation} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def differences(page, shown, operations, table):
    """Sentences about what a page's table says and the tests do not, or the other way round."""
    standing, rows, columns = parsed(table)
    if columns != [c[1] for c in COLUMNS]:
        return [f"{page}: the columns are {', '.join(columns) or 'missing'}"]
    found = [f"{page}: {operation} has no row" for operation in operations if operation not in rows]
    found += [f"{page}: {row} is no operation of the tests" for row in rows if row not in operations]
    if not found and rows != operations:
        found.append(f"{page}: the rows are not in the order of {OPERATIONS_HEADER.name}")
    for operation in (row for row in rows if row in operations):
        for name, title, word, _ in COLUMNS:
            said = standing.get((operation, title), "")
            shows = shown.cell(operation, name, word)
            if name in shown.columns and said != shows:
                found.append(f"{page}: {operation}, {name}: '{said}', where the tests show '{shows}'")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("pages", type=pathlib.Path, nargs="+")
    manner = parser.add_mutually_exclusive_group(required=True)
    manner.add_argument("--check", action="store_true")
    manner.add_argument("--write", action="store_true")
    parser.add_argument("--recorded", type=pathlib.Path)
    arguments = parser.parse_intermixed_args()
    operations = operations_of(OPERATIONS_HEADER.read_text())
    shown = Shown(tests_of(arguments.build), operations, arguments.recorded)
    left_out = [c[0] for c in COLUMNS if c[0] not in shown.columns]
    found = []
    for page in arguments.pages:
        text = page.read_text()
        before, inside, behind = parts_of(page, text)
        if arguments.write:
            table = table_of(shown, operations, parsed(inside)[0])
            page.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{behind}")
        else:
            found += differences(page, shown, operations, inside)
    for sentence in found:
        print(sentence)
    names = ", ".join(str(page) for page in arguments.pages)
    print(f"What runs where, in {names}: {'not ' if found else ''}as the tests of {arguments.build} show it"
          + (f"; not compared, since it has none: {', '.join(left_out)}" if left_out else ""))
    return 1 if found else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Unusable as problem:
        print(f"support_matrix.py: {problem}", file=sys.stderr)
        sys.exit(2)
