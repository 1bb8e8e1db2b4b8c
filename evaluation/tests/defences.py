"""Every defence of the grader's, the test in which it is switched off, and the cheat that gets through then.

`python -m evaluation.tests.defences` prints the table. The static scan is no defence: it points a reader, and decides
nothing. Of containers, which need an engine, test_container.py shows what each is refused.
"""

from typing import NamedTuple

from rich.console import Console
from rich.table import Table


class Defence(NamedTuple):
    """`test` is of test_FILE.py, FILE being `file`, where its name begins with test_."""

    what: str
    file: str
    test: str
    cheat: str


_SUITE = (
    ("canaries", "without_canaries_a_disarmed_raises_passes", "pytest.raises that raises nothing"),
    (
        "the report's own counts; ids that the grader collects itself",
        "without_ids_of_its_own_the_grader_misses_tests_that_were_left_out",
        "failed tests taken out of the report",
    ),
    (
        "hashes of the suite and of the grader",
        "without_hashes_of_the_grader_and_ids_of_its_own_a_changed_suite_and_a_shorter_one_pass",
        "a suite that is written to, tests that are not collected",
    ),
    (
        "hash of the suite's copy",
        "without_a_hash_of_the_suites_copy_tests_that_come_later_are_disarmed",
        "tests rewritten before they are imported",
    ),
    ("hash of the tree", "without_the_trees_hash_a_tree_that_changes_itself_passes", "a tree that changes itself"),
    ("nonce of an import", "without_a_nonce_an_import_that_never_returned_passes", "an import that claims and exits"),
    (
        "private copy of the tree",
        "without_a_copy_of_its_own_a_candidate_changes_what_will_be_handed_in",
        "writing to the tree that was named",
    ),
    (
        "copy for reading only",
        "without_a_copy_for_reading_only_a_candidate_changes_the_copy",
        "writing to its own files",
    ),
    (
        "scrubbed environment",
        "without_an_environment_of_its_own_a_planted_module_takes_a_librarys_place",
        "a pytest of its own on PYTHONPATH",
    ),
    (
        "supervisor, and the judge's look for orphans",
        "without_the_supervisor_and_the_judges_own_look_a_process_is_left_behind",
        "a process in a session of its own",
    ),
    ("secret seed", "without_a_secret_seed_the_truth_is_known_beforehand", "the truth of a known seed, by heart"),
    (
        "bounds from vanilla's own error",
        "without_bounds_from_vanillas_own_error_16_bits_pass_for_fp32",
        "fp16 arithmetic for fp32",
    ),
    (
        "judge in a process of its own",
        "without_a_process_of_its_own_a_candidate_patches_its_judge",
        "torch.Tensor.norm that is zero",
    ),
    (
        "the worker's functions, taken before the tree is imported",
        "without_functions_taken_before_the_tree_is_imported_a_changed_input_has_its_old_hash",
        "hashlib patched over a changed input",
    ),
)
_TIMED = (
    (
        "values of its own for each turn",
        "without_values_of_its_own_for_each_turn_a_replay_by_value_wins",
        "replay by value",
    ),
    (
        "which call is checked is secret",
        "without_a_secret_which_call_is_checked_only_that_call_is_computed",
        "every other call computed",
    ),
    (
        "freeze of who has no turn; before alone as part of the noise floor",
        "without_the_freeze_a_candidate_slows_the_other_down",
        "work while before is timed",
    ),
    (
        "turns, A B B A",
        "without_turns_a_machine_that_gets_faster_makes_who_comes_last_faster",
        "a machine that is faster later",
    ),
    (
        "the strongest baseline",
        "without_the_strongest_baseline_a_captured_graph_of_the_same_is_faster",
        "vanilla in a CUDA graph",
    ),
    ("noise floor", "without_the_noise_floor_luck_is_faster", "luck"),
    ("kernels' names", "without_the_kernels_names_a_silent_fallback_passes", "a silent fallback"),
)
_SPEED = (
    (
        "host clock; ratio by it",
        "without_the_clock_forged_times_pass_and_without_the_hosts_ratio_they_win",
        "times divided where they are told",
    ),
    ("sums over all outputs", "without_the_sums_work_that_is_left_for_later_wins", "work left for later"),
    ("oracle over a checked call", "without_the_oracle_a_replay_wins", "replay by pointer"),
    ("form of timed outputs", "without_the_form_and_the_clock_a_lazy_output_passes", "lazy output"),
    (
        "signs that come with go",
        "without_signs_that_come_late_what_was_computed_ahead_wins",
        "computed ahead of its time",
    ),
    (
        "before alone as part of the noise floor",
        "a_before_that_is_slowed_beside_after_makes_nothing_faster",
        "a before that is slowed",
    ),
    ("physical floor", "what_no_machine_can_do_is_refused_and_passes_without_the_floor", "both clocks forged"),
)
_COMPANION = (
    (
        "token of a question",
        "without_a_token_an_answer_passes_of_one_who_has_not_read_the_question",
        "an answer to a question that was not read",
    ),
    (
        "look for what nobody asked",
        "without_the_look_for_what_nobody_asked_a_line_too_many_passes",
        "an answer before its question",
    ),
    ("token and look", "without_both_an_answer_comes_before_its_question", "an answer before its question"),
    ("freeze", "without_the_freeze_a_worker_that_has_no_turn_goes_on", "a process that works on"),
)
_CASES = "without_the_cases_of_a_defence_what_they_are_for_gets_through"
_CHECKS = "without_a_check_what_it_is_for_gets_through"
_GALLERY = (
    ("other values in the same memory", _CASES, "replay by pointer, first call only"),
    ("other weights in the same memory", _CASES, "weights of the first call kept"),
    ("inference mode, dtypes, sizes, masks, positions, gradients", _CASES, "right only where others do not look"),
    ("needles at tiles' edges", _CASES, "a key at a tile's edge dropped"),
    ("outputs kept over later calls", _CASES, "one buffer for all outputs"),
    ("type, shape and strides of outputs", _CHECKS, "lazy output"),
    ("hashes of inputs and weights", _CHECKS, "input written over, weights written over"),
    ("laws between calls, bit for bit", _CHECKS, "race between programs"),
)
_ELSEWHERE = (
    (
        "integrity",
        "nonces of test bodies",
        "without_nonces_a_forgery_that_spares_the_canaries_gets_through",
        "outcomes forged of its own tests only",
    ),
    (
        "limits",
        "limits of memory, processes, output, files",
        "without_its_limit_a_greedy_process_is_not_noticed",
        "64 GB, forks, 10 GB of output, a full folder",
    ),
    (
        "time_calls",
        "L2 flush",
        "without_the_flush_a_call_has_its_values_in_the_cache",
        "values that stay in the cache",
    ),
    (
        "timed_steps",
        "oracle over a step's gradients, sums over them",
        "without_the_oracle_or_the_sums_a_cheat_with_gradients_wins",
        "gradients skipped, replayed, left for later",
    ),
    (
        "bundle",
        "hashes of a bundle",
        "without_its_hashes_a_bundle_passes_with_befores_tensors_for_afters",
        "before's tensors for after's",
    ),
)
DEFENCES = (
    *(Defence(what, "defences", test, cheat) for what, test, cheat in _SUITE),
    *(Defence(what, "timed_defences", test, cheat) for what, test, cheat in _TIMED),
    *(Defence(what, "speed", test, cheat) for what, test, cheat in _SPEED),
    *(Defence(what, "companion", test, cheat) for what, test, cheat in _COMPANION),
    *(Defence(what, "gallery", test, cheat) for what, test, cheat in _GALLERY),
    *(Defence(what, file, test, cheat) for file, what, test, cheat in _ELSEWHERE),
)


def main() -> None:
    table = Table("defence", "what gets through without it", "shown by")
    for each in DEFENCES:
        table.add_row(each.what, each.cheat, f"test_{each.file}.py: {each.test.replace('_', ' ')}")
    Console().print(table)


if __name__ == "__main__":
    main()
