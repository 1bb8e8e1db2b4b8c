"""Each defence of the suite, the processes and the numbers, switched off: what it is for gets through."""

import os
import secrets
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from evaluation.judge import compare, numerics
from evaluation.judge.case import Case, Sizes
from evaluation.judge.compare import judge_case, truth_of
from evaluation.judge.draw import Drawn, draw
from evaluation.judge.numerics import Result, run_worker
from evaluation.suite import instrument, pair, probe, process, run, stage
from evaluation.suite.probe import check_import
from evaluation.suite.process import run_bounded
from evaluation.suite.pytest_report import PytestReport
from evaluation.suite.result import FailureKind, SuiteRun, TreeProblem
from evaluation.suite.stage import Staged, staged
from evaluation.tests.conftest import Kata
from evaluation.tests.gallery.forgeries import DISARMS_LATER_TESTS, DISARMS_RAISES, INIT, LEAVES_TESTS_OUT, WRONG
from evaluation.tests.test_integrity import no_canaries

REFUSES = """
@pytest.mark.contract
def test_area_refuses_text():
    with pytest.raises(TypeError):
        mmdit.area("3")
"""
DROPS_FAILURES = """
import pytest_jsonreport.plugin as plugin
_save = plugin.JSONReport.save_report
def _forged(self, path):
    kept = [test for test in self.report["tests"] if "square" not in test["nodeid"] or test["outcome"] == "passed"]
    self.report["tests"] = kept
    return _save(self, path)
plugin.JSONReport.save_report = _forged
"""
CHANGES_ITSELF = "import os; os.chmod(__file__, 0o600); open(__file__, 'a').write('#')"


class TestSuite:
    def test_without_canaries_a_disarmed_raises_passes(self, kata: Kata, monkeypatch: pytest.MonkeyPatch):
        kata.append("suite/test_square.py", REFUSES)
        kata.append(INIT, f"_area = area\ndef area(side): return 1 if side == '3' else _area(side)\n{DISARMS_RAISES}")
        monkeypatch.setattr(instrument, "_write_canaries", no_canaries)
        assert_passed(kata.run_after())

    @pytest.mark.slow
    def test_without_ids_of_its_own_the_grader_misses_tests_that_were_left_out(
        self, kata: Kata, monkeypatch: pytest.MonkeyPatch
    ):
        """And without the report's own counts, failed ones that were taken out of it."""
        kata.append(INIT, WRONG.replace("return 1", "return 0") + DROPS_FAILURES)
        found = kata.run_after()
        assert "collected tests have no outcome" in found.failures[0].message
        monkeypatch.setattr(PytestReport, "check", lambda *_: None)
        found = kata.run_after()
        assert_passed(found)
        collected = run.collect_ids(kata.settings())
        ids = [*(case.nodeid for case in found.cases), *(each.nodeid for each in found.not_run)]
        with pytest.raises(TreeProblem, match="1 tests are not in the report"):
            pair.check_ids(ids, collected)

    def test_without_the_trees_hash_a_tree_that_changes_itself_passes(
        self, kata: Kata, monkeypatch: pytest.MonkeyPatch
    ):
        kata.append(INIT, CHANGES_ITSELF)
        monkeypatch.setattr(run, "digest_of", lambda *_: "")
        assert_passed(kata.run_after())

    @pytest.mark.slow
    def test_without_a_hash_of_the_suites_copy_tests_that_come_later_are_disarmed(
        self, kata: Kata, monkeypatch: pytest.MonkeyPatch
    ):
        zone = "import mmdit, pytest\n@pytest.mark.contract\ndef test_area_of_two():\n    assert mmdit.area(2) == 4"
        kata.append("suite/test_zone.py", zone)
        kata.append(
            INIT, f"_area = area\ndef area(side): return 5 if side == 2 else _area(side)\n{DISARMS_LATER_TESTS}"
        )
        assert [failure.kind for failure in kata.run_after().failures] == [FailureKind.GRADER_CHANGED]
        monkeypatch.setattr(run, "digest_of", lambda *_: "")
        assert_passed(kata.run_after())

    @pytest.mark.slow
    @pytest.mark.usefixtures("known_machine")
    def test_without_hashes_of_the_grader_and_ids_of_its_own_a_changed_suite_and_a_shorter_one_pass(
        self, kata: Kata, monkeypatch: pytest.MonkeyPatch
    ):
        for tree in ("before", "after"):
            kata.append(f"{tree}/mmdit/__init__.py", LEAVES_TESTS_OUT)
        kata.append(INIT, f"open({str(kata.suite / 'conftest.py')!r}, 'a').write('#')")
        monkeypatch.setattr(pair, "digest_of", lambda *_: "")
        monkeypatch.setattr(pair, "check_ids", lambda *_: None)
        assert kata.grade().failures == ()

    def test_without_a_nonce_an_import_that_never_returned_passes(self, kata: Kata, monkeypatch: pytest.MonkeyPatch):
        claims = "import os, sys; open(sys.argv[1], 'w').write('{\"nonce\": \"\"}'); os._exit(0)"
        kata.append(INIT, claims)
        with staged(kata.after, "after") as tree:
            with pytest.raises(TreeProblem) as caught:
                check_import(tree, 60)
            assert caught.value.kind is FailureKind.IMPORT_EXIT
            monkeypatch.setattr(probe.secrets, "token_hex", lambda *_: "")
            check_import(tree, 60)


def assert_passed(found: SuiteRun) -> None:
    assert found.failures == ()
    assert {case.outcome for case in found.cases} == {"passed"}


NO_CAPABILITIES = "import ctypes; ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522), (ctypes.c_uint32 * 6)())"


def run_python(tree: Staged, code: str, *more: str) -> int | None:
    command = [sys.executable, *more, "-c", code, str(tree.tree / "mmdit" / "__init__.py")]
    return tree.run(command, timeout=60).return_code


class TestProcesses:
    def test_without_a_copy_of_its_own_a_candidate_changes_what_will_be_handed_in(
        self, kata: Kata, monkeypatch: pytest.MonkeyPatch
    ):
        file, change = kata.folder / INIT, CHANGES_ITSELF.replace("__file__", "__import__('sys').argv[1]")
        was = file.read_bytes()
        with staged(kata.after, "after") as tree:
            assert (run_python(tree, change, "-S"), file.read_bytes()) == (0, was)

        def itself(source: Path, copy: Path, **_: object) -> None:
            copy.parent.mkdir()
            copy.symlink_to(source)

        monkeypatch.setattr(stage.shutil, "copytree", itself)
        with staged(kata.after, "after") as tree:
            assert (run_python(tree, change, "-S"), file.read_bytes()) == (0, was + b"#")

    def test_without_a_copy_for_reading_only_a_candidate_changes_the_copy(
        self, kata: Kata, monkeypatch: pytest.MonkeyPatch
    ):
        """Without the capabilities of root, as where nobody runs the grader as root."""
        change = f"{NO_CAPABILITIES}; import sys; open(sys.argv[1], 'a').write('#')"
        with staged(kata.after, "after") as tree:
            assert run_python(tree, change, "-S") == 1
        monkeypatch.setattr(stage, "_WRITABLE", 0)
        with staged(kata.after, "after") as tree:
            assert run_python(tree, change, "-S") == 0

    def test_without_an_environment_of_its_own_a_planted_module_takes_a_librarys_place(
        self, kata: Kata, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ):
        (tmp_path / "pytest.py").write_text("planted = True")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        look = "import pytest; pytest.planted"
        with staged(kata.after, "after") as tree:
            assert run_python(tree, look, "-P") == 1
        monkeypatch.setattr(stage, "child_environment", lambda _scratch: dict(os.environ))
        with staged(kata.after, "after") as tree:
            assert run_python(tree, look, "-P") == 0

    def test_without_the_supervisor_and_the_judges_own_look_a_process_is_left_behind(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ):
        leaves = "import os, sys, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(60)\n"
        leaves += "open(sys.argv[1], 'w').write(' '.join(os.listdir('/proc')))"
        harmless = Path(process._SUPERVISOR).read_text().replace("    kill_descendants()\n", "")
        (tmp_path / "supervise.py").write_text(harmless)

        def left() -> set[int]:
            before = process._children()
            command = [sys.executable, "-S", "-c", leaves, str(tmp_path / "told")]
            run_bounded(command, cwd=tmp_path, env={}, timeout=60)
            return process._children() - before

        assert left() == set()
        monkeypatch.setattr(process, "_SUPERVISOR", tmp_path / "supervise.py")
        assert left() == set()
        kill = process._kill_children_except
        monkeypatch.setattr(process, "_kill_children_except", lambda _: None)
        behind = left()
        kill(process._children() - behind)
        assert len(behind) == 1


# Of the seed that it knows it has the truth at hand; the other function counts in 16 bits.
KNOWN_SEED = 7
REPLAYS = """
import torch
from pathlib import Path
from safetensors.torch import load_file
_truth = load_file(Path(__file__).with_name("truth.safetensors"))
def layernorm_adaln(x, scale, shift, eps=1e-6):
    return _truth["0.x_out"].clone()
def rmsnorm_adaln(x, scale, shift, eps=1e-6, weight=None):
    x, scale, shift, weight = (t.half() for t in (x, scale, shift, weight))
    out = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight * (1 + scale[:, None]) + shift[:, None]
    return out.float()
"""
# Its input is another afterwards, and every later hash of that is the one of what it was.
CHANGES_INPUTS = """
import hashlib
from torch.nn.functional import layer_norm
_sha256, _was = hashlib.sha256, {}
def layernorm_adaln(x, scale, shift, eps=1e-6):
    out = layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale[:, None]) + shift[:, None]
    was = x.numpy().tobytes()
    x.data.mul_(2)
    _was[x.numpy().tobytes()] = was
    return out
hashlib.sha256 = lambda data: _sha256(_was.get(data, data))
"""
NORM_CASE = Case("layernorm_adaln", Sizes(2, 5, 1, 2, 4), mode="inference")
RMS_CASE = Case("rmsnorm_adaln", Sizes(2, 5, 1, 2, 4), mode="inference")


def problems(drawn: Drawn, result: Result) -> tuple[str, ...]:
    return judge_case(drawn, truth_of(drawn), *result, None).problems


def results(folder: Path, code: str, drawn: list[Drawn]) -> list[Result]:
    (folder / "after" / "mmdit").mkdir(parents=True)
    (folder / "after" / "mmdit" / "__init__.py").write_text(code)
    truth = {name: t.float() for name, t in truth_of(drawn[0]).items()}
    save_file(truth, folder / "after" / "mmdit" / "truth.safetensors")
    with staged(folder / "after", "after") as tree:
        ran = run_worker(tree, drawn, 120, "cpu")
    assert ran.failure is None, ran.failure
    return ran.results


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Drawn, Result]]:
    """One worker's results: with the seed known, with a secret one, and of sums in 16 bits."""
    secret = secrets.randbits(numerics.SEED_BITS)
    drawn = [draw(NORM_CASE, KNOWN_SEED), draw(NORM_CASE, secret), draw(RMS_CASE, secret)]
    return list(zip(drawn, results(tmp_path_factory.mktemp("replayed"), REPLAYS, drawn), strict=True))


class TestNumbers:
    def test_without_a_secret_seed_the_truth_is_known_beforehand(self, replayed: list[tuple[Drawn, Result]]):
        assert problems(*replayed[0]) == ()
        assert "relative L2 error" in problems(*replayed[1])[0]

    def test_without_bounds_from_vanillas_own_error_16_bits_pass_for_fp32(
        self, replayed: list[tuple[Drawn, Result]], monkeypatch: pytest.MonkeyPatch
    ):
        assert "relative L2 error" in problems(*replayed[2])[0]
        monkeypatch.setattr(compare, "allowed", lambda *_: 1e-2)  # what graders commonly allow
        assert problems(*replayed[2]) == ()

    def test_without_a_process_of_its_own_a_candidate_patches_its_judge(
        self, replayed: list[tuple[Drawn, Result]], monkeypatch: pytest.MonkeyPatch
    ):
        assert problems(*replayed[1])
        monkeypatch.setattr(torch.Tensor, "norm", lambda *_, **__: torch.zeros(()))
        monkeypatch.setattr(torch.Tensor, "clamp", lambda *_, **__: torch.ones(()))
        assert problems(*replayed[1]) == ()

    @pytest.mark.slow
    def test_without_functions_taken_before_the_tree_is_imported_a_changed_input_has_its_old_hash(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        drawn = draw(NORM_CASE, secrets.randbits(numerics.SEED_BITS))
        (found,) = results(tmp_path / "first", CHANGES_INPUTS, [drawn])
        assert problems(drawn, found) == ("call 0 changed its input x",)
        taken = numerics._WORKER.read_text()
        late = taken.replace("from hashlib import sha256\n", "import hashlib\n").replace(" sha256(", " hashlib.sha256(")
        assert late != taken
        (tmp_path / "run_cases.py").write_text(late)
        monkeypatch.setattr(numerics, "_WORKER", tmp_path / "run_cases.py")
        (found,) = results(tmp_path / "second", CHANGES_INPUTS, [drawn])
        assert problems(drawn, found) == ()
