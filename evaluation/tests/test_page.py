"""The verdict page: what it says, that it needs nothing, and how it does in a browser."""

import html
import json
import re
import shutil
import subprocess
from datetime import UTC, datetime
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import ValidationError

from evaluation.judge.record import CaseNumbers, Measure, Numerics, NumericsRun
from evaluation.judge.scan import Finding
from evaluation.report.models import Report
from evaluation.report.page import main, render_page
from evaluation.report.write import write_record
from evaluation.store.forms import History, HistoryPoint
from evaluation.suite.result import CaseResult, Failure, FailureKind, NotRun
from evaluation.tests.h200_report import h200_report, h200_speed

DARK, LIGHT = (f"--blink-settings=preferredColorScheme={number}" for number in (0, 1))
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SCRIPT = "<script>document.title = 'forged'</script>"


def numbers() -> Numerics:
    def case(name: str, share: float) -> CaseNumbers:
        worst = Measure(name="x_out", error=1e-3 * share, bound=1e-3)
        problems = ("x_out is too far",) if share > 1 else ()
        return CaseNumbers(name=name, status="fail" if problems else "pass", worst=worst, problems=problems)

    shares = {"near": 0.9, "far": 0.1, "wrong": 3.0} | {f"block-B2-L37-C5-{n}": 0.3 for n in range(74)}
    run = NumericsRun(cases=tuple(case(*each) for each in shares.items()))
    return Numerics(seed=1, before=run, after=run)


@pytest.fixture(scope="module")
def failing(passing: Report) -> Report:
    """A large report, as of the whole suite, with all that a page can show, and some text that is markup."""
    name = "tests/test_long_name_of_a_file.py::test_a_behaviour_as_a_sentence[B3-L37-C5-H3-D32-float32-{}]"
    tests = tuple(
        CaseResult(nodeid=name.format(n), name="t", outcome="passed", expectation="contract", duration_seconds=0.1)
        for n in range(1200)
    )
    wrong = tests[0].model_copy(
        update={"nodeid": "tests/test_x.py::test_wrong", "outcome": "failed", "message": SCRIPT}
    )
    left = tuple(NotRun(nodeid=name.format(n), reason="no CUDA device", expectation="upgrade") for n in range(900))
    after = passing.results.after.model_copy(update={"tests": (*tests, wrong), "not_run": left})
    comparison = passing.comparison.model_copy(update={"passed_gate": False})
    failure = Failure(kind=FailureKind.CONTRACT_FAILED, tree="after", message=SCRIPT, nodeids=(wrong.nodeid,))
    finding = Finding(rule="clock", file="mmdit/x.py", line=3, message="time.sleep")
    changes = {
        "results": passing.results.model_copy(update={"after": after, "comparison": comparison}),
        "comparison": comparison,
        "failures": (failure,),
        "success": False,
        "error": f"after: contract_failed: {SCRIPT}",
        "numerics": numbers(),
        "speed": h200_speed(),
        "findings": (finding,),
    }
    return passing.model_copy(update=changes)


def history() -> History:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    points = [
        HistoryPoint(run=f"r{n}", started_at=now, commit=None, value=value, changed=n == 3)
        for n, value in enumerate((8.0, 8.1, 8.0, 4.0, 4.1, 4.0))
    ]
    return History(metric="speed/stack/ratio", statistic="p50", points=tuple(points), left_out=())


def text_of(page: str) -> str:
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_the_verdict_and_its_reason_come_first(passing: Report, failing: Report):
    said = text_of(render_page(passing))
    assert said.startswith("Success: MMDiT verdict")
    assert "Skip to the verdict Success 2 tests that fail on before pass on after" in said
    said = text_of(render_page(failing))
    assert f"Skip to the verdict Failed after: contract_failed: {SCRIPT} contract failed on after" in said


def test_the_page_says_what_the_report_does(failing: Report):
    said = text_of(render_page(failing, [history()]))
    target = failing.speed.cases[0]
    ratio = f"{target.ratio.ratio:.3g} [{target.ratio.low:.3g}, {target.ratio.high:.3g}]"
    for part in (
        f"✓ faster 0.9889 0.1171 {ratio} {ratio} {target.noise_floor:.3g} 3% fused",
        "5 kernels that after launches, 5 of its own",
        "the floor, 3.473 us; logarithmic",
        "after: graph 69.21 MB 0.9 s before: compiled not timed: BackendCompilerFailed",
        "6543 operations per byte, under 750 TFLOP/s, by operations called as done of the roof after: graph, compared "
        "206 TFLOP/s 27.5%",
        "✗ fail : x_out is too far x_out 0.003 0.001 300% 300%",
        "contract 2 passed, 1 not run 1200 passed, 1 failed",
        "✗ failed on after: tests/test_x.py::test_wrong (contract)",
        "? not run : 900 tests: no CUDA device",
        "mmdit/x.py:3 : time.sleep",
        "6 runs; the last 4; between 4 and 8.1; dashed where it changed",
        "seed of the numeric cases 1",
    ):
        assert part in said, part
    assert said.index("wrong ✗ fail") < said.index("near ✓ pass") < said.index("far ✓ pass")


def test_what_was_not_measured_is_said(passing: Report):
    said = text_of(render_page(passing))
    assert f"Speed Not measured: {passing.speed.why}" in said
    assert "Earlier runs" not in said


def test_a_page_is_small_whole_and_asks_for_nothing(failing: Report, passing: Report):
    for report in (failing, passing, h200_report(passing)):
        page = render_page(report, [history()])
        assert len(page.encode()) < 1_000_000
        assert SCRIPT not in page
        assert "<script" not in page
        assert set(re.findall(r"""(?:src|href|url|action)\s*[=(]\s*["']?(.)""", page)) == {"#"}
        Whole().check(page)


class Whole(HTMLParser):
    """Every element that is opened is closed, in order."""

    def check(self, page: str) -> None:
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, _attributes: object) -> None:
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()

    def handle_startendtag(self, tag: str, _attributes: object) -> None:
        pass


def test_only_a_valid_report_becomes_a_page(passing: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ValidationError):
        render_page(passing.model_copy(update={"success": False}))
    write_record(passing, tmp_path / "report.json")
    assert main([str(tmp_path / "report.json")]) == 0
    assert (tmp_path / "report.html").read_text() == render_page(passing)
    (tmp_path / "report.json").write_text("{}")
    assert main([str(tmp_path / "report.json")]) == 3
    assert "is not a report" in capsys.readouterr().err


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
class TestBrowser:
    """With --headless; pictures are left in the test's folder."""

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("desktop", ("--window-size=1280,3000", LIGHT)),
            ("dark", ("--window-size=1280,3000", DARK)),
            ("phone", ("--window-size=500,3000", LIGHT)),
        ],
    )
    def test_it_is_shown_without_an_error(self, failing: Report, tmp_path: Path, name: str, options: tuple[str, ...]):
        page, picture = tmp_path / "page.html", tmp_path / f"{name}.png"
        page.write_text(render_page(failing, [history()]))
        told = browse(page, *options, f"--screenshot={picture}")
        assert picture.stat().st_size > 20_000
        assert "CONSOLE" not in told

    @pytest.mark.parametrize("scheme", [DARK, LIGHT], ids=["dark", "light"])
    def test_axe_finds_nothing(self, failing: Report, tmp_path: Path, scheme: str):
        page = render_page(failing, [history()])
        assert axe(page, tmp_path / "page.html", scheme) == []

    def test_a_phone_and_a_keyboard_reach_all_of_it(self, failing: Report, tmp_path: Path):
        told = in_frame(with_script(render_page(failing, [history()]), REACH), tmp_path, PHONE)
        assert told["tooWide"] == []
        assert told["first"] == "Skip to the verdict"
        assert len(told["stops"]) > 15
        assert [each for each in told["stops"] if each != "seen"] == []

    def test_nothing_is_cut_off_on_paper(self, failing: Report, tmp_path: Path):
        printed = render_page(failing, [history()]).replace("@media print", "@media all")
        script = REACH.replace(".scroll, .skip", ".skip")  # nothing scrolls on paper
        assert in_frame(with_script(printed, script), tmp_path, PAPER)["tooWide"] == []

    def test_axe_finds_what_is_wrong(self, failing: Report, tmp_path: Path):
        page = render_page(failing).replace('lang="en"', "").replace("--soft: #57606a", "--soft: #c0c0c0")
        assert {name for name, _ in axe(page, tmp_path / "page.html", LIGHT)} == {"html-has-lang", "color-contrast"}


def axe(page: str, file: Path, *options: str) -> list[tuple[str, list[str]]]:
    """What axe-core finds against a page: the rule's name, and the first elements that break it."""
    script = files("axe_core_python").joinpath("axe.min.js").read_text()
    file.write_text(with_script(page, f"{script};{RUN}"))
    shown = browse(file, *options, WAIT, "--dump-dom")
    return json.loads(html.unescape(re.search(r'data-axe="(.*?)"', shown)[1]))


def with_script(page: str, script: str) -> str:
    open_page = re.sub(r"<meta http-equiv=.*?>", "", page)  # which lets no script run
    return open_page.replace("</body>", f"<script>{script}</script></body>")


WAIT = "--virtual-time-budget=60000"
PHONE, PAPER = 390, 718  # CSS pixels: a phone's screen, and A4 between its margins
RUN = """axe.run().then(found => {
  document.body.dataset.axe = JSON.stringify(found.violations.map(v => [v.id, v.nodes.map(n => n.html).slice(0, 2)]))
})"""


# What is wider than the window and not in a region that scrolls; and of all that the keyboard stops at, in the order of
# the page, whether it takes the focus and shows it.
REACH = """addEventListener('load', () => {
  const all = [...document.querySelectorAll('body *')], wide = innerWidth + 1
  const tooWide = all.filter(e => !e.closest('.scroll, .skip') && e.getBoundingClientRect().right > wide)
  const stops = all.filter(e => e.tabIndex >= 0 && e.checkVisibility())
  const seen = stops.map(e => {
    e.focus()
    const style = getComputedStyle(e)
    const ring = style.outlineStyle === 'solid' && parseFloat(style.outlineWidth) >= 2
    return document.activeElement === e && ring && e.tabIndex === 0 ? 'seen' : e.outerHTML.slice(0, 80)
  })
  const told = {width: innerWidth, tooWide: tooWide.map(e => e.outerHTML.slice(0, 80)), stops: seen}
  parent.postMessage(JSON.stringify({...told, first: stops[0].textContent}), '*')
})"""
KEEP = "<script>addEventListener('message', e => { document.body.dataset.told = e.data })</script>"


def in_frame(page: str, folder: Path, width: int) -> dict[str, Any]:
    """What a page tells its parent, in a frame of this width, as no window of Chromium's is as narrow as a phone."""
    (folder / "page.html").write_text(page)
    frame = folder / "frame.html"
    frame.write_text(f"<iframe src=page.html style='width:{width}px;height:800px'></iframe>{KEEP}")
    told = json.loads(html.unescape(re.search(r'data-told="(.*?)"', browse(frame, WAIT, "--dump-dom"))[1]))
    assert told["width"] == width
    return told


def browse(page: Path, *options: str) -> str:
    fixed = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr")
    folder = f"--user-data-dir={page.parent / 'profile'}"
    done = subprocess.run(
        [CHROMIUM, *fixed, folder, *options, page.as_uri()], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout + done.stderr
