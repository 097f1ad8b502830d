"""The support matrix's script, on builds made up here: what is missing, stale, failed or wrong must be found.

    check_support_matrix.py PROBE        PROBE: the program of claims_probe.cpp
"""
import contextlib
import io
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest
import unittest.mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import support_matrix as matrix  # noqa: E402

PROBE = sys.argv.pop()
OPERATIONS = matrix.operations_of(matrix.OPERATIONS_HEADER.read_text())
PAGE = f"# Page\n\n{matrix.BEGIN}\n{matrix.END}\n\nbehind\n"


class Build:
    """A build folder with tests that were made and have run, as CTest describes them."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.tests = {}
        self.ran("router/switch", "Eigen seq\tSwitch, forward", "Eigen par\tSwitch, forward")
        self.ran("thrust_cpp/rows", "Thrust CPP\tdispatch")
        self.ran("simt_device/greedy/rows", "CUDA emulated\tdispatch")
        self.ran("gpu/rows", "CUDA compiled\tdispatch", end="skipped")

    def claims(self, name):
        return self.folder / (name.replace("/", ".") + ".txt")

    def ran(self, name, *lines, end="passed"):
        program = self.folder / "program"
        if not program.exists():
            program.write_text("")
            os.utime(program, (1, 1))
        self.claims(name).write_text("\n".join([*lines, f"end\t{end}"]) + "\n")
        self.tests[name] = program
        self.describe()

    def describe(self):
        text = ""
        for name, program in self.tests.items():
            text += f'add_test({name} "{program}")\nset_tests_properties({name} PROPERTIES ENVIRONMENT '
            text += f'"OTHER=1;SWITCHYARD_COVERS={self.claims(name)}")\n'
        (self.folder / "CTestTestfile.cmake").write_text(text + 'add_test(docs/other "/bin/true")\n')


class SupportMatrix(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.build = Build(folder.name)
        self.page = self.build.folder / "page.md"
        self.page.write_text(PAGE)

    def run_script(self, manner, *options):
        """Exit status and what it says."""
        out = io.StringIO()
        arguments = ["support_matrix.py", str(self.build.folder), manner, str(self.page), *options]
        with unittest.mock.patch.object(sys, "argv", arguments), contextlib.redirect_stdout(out):
            status = matrix.main()
        return status, out.getvalue()

    def row(self, operation):
        line = next(x for x in self.page.read_text().splitlines() if x.startswith(f"| {operation} |"))
        return [cell.strip() for cell in line.strip("|").split("|")][1:]

    def test_writes_what_the_tests_showed_and_agrees_with_it(self):
        self.assertEqual(self.run_script("--write")[0], 0)
        self.assertEqual(self.row("Switch, forward"), ["tested", "tested", "-", "-", "-", "-", "-", "-"])
        self.assertEqual(self.row("dispatch"), ["-", "-", "tested", "-", "-", "compiled", "emulated", "never run"])
        self.assertTrue(self.page.read_text().startswith("# Page\n"))
        self.assertTrue(self.page.read_text().endswith(matrix.END + "\n\nbehind\n"))
        status, said = self.run_script("--check")
        self.assertEqual(status, 0)
        self.assertIn("not compared, since it has none: Thrust OMP, Thrust TBB, CUDA run", said)
        again = self.page.read_text()
        self.run_script("--write")
        self.assertEqual(self.page.read_text(), again)

    def test_finds_a_claim_that_is_no_longer_made(self):
        self.run_script("--write")
        self.build.ran("router/switch", "Eigen seq\tSwitch, forward")
        status, said = self.run_script("--check")
        self.assertEqual(status, 1)
        self.assertIn("Switch, forward, Eigen par: 'tested', where the tests show '-'", said)

    def test_finds_a_claim_that_the_page_does_not_make(self):
        self.run_script("--write")
        self.build.ran("gpu/rows", "CUDA compiled\tdispatch", "CUDA compiled\tcombine", end="skipped")
        status, said = self.run_script("--check")
        self.assertEqual(status, 1)
        self.assertIn("combine, CUDA compiled: '-', where the tests show 'compiled'", said)

    def test_finds_rows_and_columns_that_are_missing_or_made_up(self):
        self.assertEqual(self.run_script("--check")[0], 1)
        self.run_script("--write")
        good = self.page.read_text()
        row = next(x for x in good.splitlines() if x.startswith("| combine |"))
        other = next(x for x in good.splitlines() if x.startswith("| dispatch |"))
        for wrong, sentence in (
            (good.replace(row + "\n", ""), "combine has no row"),
            (good.replace(row, row.replace("combine", "teleport")), "teleport is no operation"),
            (good.replace(row, "@@").replace(other, row).replace("@@", other), "not in the order"),
            (good.replace("| Thrust OMP ", ""), "the columns are"),
        ):
            self.page.write_text(wrong)
            status, said = self.run_script("--check")
            self.assertEqual(status, 1)
            self.assertIn(sentence, said)

    def test_a_gpu_that_ran_stays_in_the_page_where_there_is_none(self):
        self.build.ran("gpu/rows", "device\tGPU 1", "CUDA compiled\tdispatch", "CUDA run\tdispatch")
        self.run_script("--write")
        self.assertEqual(self.row("dispatch")[-1], "run on GPU 1")
        self.assertNotIn("CUDA run", self.run_script("--check")[1])
        self.build.ran("gpu/rows", "CUDA compiled\tdispatch", "CUDA compiled\tcombine", end="skipped")
        self.run_script("--write")
        self.assertEqual(self.row("dispatch")[-1], "run on GPU 1")
        self.assertEqual(self.row("combine")[-1], "never run")
        self.assertEqual(self.run_script("--check")[0], 0)

    def test_a_recorded_run_is_the_column_of_a_build_without_a_gpu(self):
        record = self.build.folder / "record.txt"
        record.write_text("# made up\ndevice\tGPU 2\nCUDA run\tdispatch\n")
        self.build.ran("gpu/rows", "CUDA compiled\tdispatch", "CUDA compiled\tcombine", end="skipped")
        options = ["--recorded", str(record)]
        self.run_script("--write", *options)
        self.assertEqual(self.row("dispatch")[-1], "run on GPU 2")
        self.assertEqual(self.row("combine")[-1], "no passing run")
        self.assertEqual(self.row("Switch, forward")[-1], "-")
        self.assertEqual(self.run_script("--check", *options)[0], 0)
        record.write_text("device\tGPU 2\nCUDA run\tcombine\n")
        self.assertEqual(self.run_script("--check", *options)[0], 1)
        # A GPU that is there counts alone.
        self.build.ran("gpu/rows", "device\tGPU 3", "CUDA compiled\tdispatch", "CUDA run\tdispatch")
        self.run_script("--write", *options)
        self.assertEqual(self.row("dispatch")[-1], "run on GPU 3")
        self.page.write_text(PAGE)
        for wrong in ("", "device\n", "Eigen seq\tdispatch\n"):
            record.write_text(wrong)
            self.build.ran("gpu/rows", "CUDA compiled\tdispatch", end="skipped")
            with self.assertRaises(matrix.Unusable):
                self.run_script("--check", *options)

    def assert_unusable(self, sentence):
        for manner in ("--check", "--write"):
            with self.assertRaises(matrix.Unusable) as raised:
                self.run_script(manner)
            self.assertIn(sentence, str(raised.exception))
        self.assertEqual(self.page.read_text(), PAGE)

    def test_a_test_that_did_not_run(self):
        self.build.claims("thrust_cpp/rows").unlink()
        self.assert_unusable("thrust_cpp/rows has not run")

    def test_a_test_that_is_not_built(self):
        self.build.tests["thrust_cpp/rows"] = self.build.folder / "nowhere"
        self.build.describe()
        self.assert_unusable("thrust_cpp/rows is not built")

    def test_a_test_that_was_built_anew(self):
        os.utime(self.build.tests["thrust_cpp/rows"])
        os.utime(self.build.claims("thrust_cpp/rows"), (1000, 1000))
        self.assert_unusable("was built anew since it ran")

    def test_a_test_that_failed_or_did_not_end(self):
        self.build.ran("thrust_cpp/rows", "Thrust CPP\tdispatch", end="failed")
        self.assert_unusable("thrust_cpp/rows did not end well")
        self.build.claims("thrust_cpp/rows").write_text("Thrust CPP\tdispatch\n")
        self.assert_unusable("thrust_cpp/rows did not end well")

    def test_claims_that_the_table_has_not(self):
        self.build.ran("thrust_cpp/rows", "Thrust CPP\tteleport")
        self.assert_unusable("claims 'teleport' on 'Thrust CPP'")
        self.build.ran("thrust_cpp/rows", "Abacus\tdispatch")
        self.assert_unusable("claims 'dispatch' on 'Abacus'")

    def test_a_folder_without_tests_and_a_page_without_marks(self):
        (self.build.folder / "CTestTestfile.cmake").write_text("")
        self.assert_unusable("no test leaves claims")
        self.build.describe()
        self.page.write_text(matrix.END + matrix.BEGIN)
        with self.assertRaises(matrix.Unusable):
            self.run_script("--write")

    def test_only_cases_that_ended_well_claim(self):
        claims = self.build.folder / "new" / "probe.txt"
        for cases, end in ((["--test-case=passes"], "passed"), ([], "failed")):
            subprocess.run([PROBE, *cases], env={**os.environ, "SWITCHYARD_COVERS": str(claims)}, capture_output=True)
            self.assertEqual(
                claims.read_text().splitlines(),
                ["Eigen seq\tdispatch", "Eigen par\tdispatch", "Eigen par\tcombine", f"end\t{end}"],
            )

    def test_the_operations_of_the_header(self):
        self.assertGreater(len(OPERATIONS), 20)
        self.assertIn("Switch, forward", OPERATIONS)
        with self.assertRaises(matrix.Unusable):
            matrix.operations_of("nothing")


if __name__ == "__main__":
    unittest.main()
