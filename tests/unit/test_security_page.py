"""docs/security.md says what becomes of bad input: every row of it is held by a test."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| (\d+) \| (.*) \|$", re.MULTILINE)

HELD = {
    1: "test_a_bad_body_says_what_kind_of_bad_it_is",
    2: "test_a_bad_body_says_what_kind_of_bad_it_is",
    3: "test_context_attributes_have_a_length_that_can_be_handed_on",
    4: "test_context_attributes_have_a_length_that_can_be_handed_on",
    5: "test_a_malformed_traceparent_is_ignored",
    6: "test_data_that_does_not_fit_is_explained_without_repeating_it",
    7: "test_a_body_that_is_wrong_many_times_is_refused_with_few_errors",
    8: "test_objects_and_values_are_counted_where_they_are_not_in_a_string",
    9: "test_a_body_that_is_wrong_many_times_is_refused_with_few_errors",
    10: "test_no_body_that_fits_sqs_takes_64_mib_of_memory",
    11: "test_a_bad_body_says_what_kind_of_bad_it_is",
    12: "test_a_body_that_is_wrong_many_times_is_refused_with_few_errors",
    13: "test_a_number_that_json_does_not_have_is_refused_where_numbers_are_wanted",
    14: "test_characters_that_sqs_refuses_arrive_as_escapes_and_a_lone_surrogate_is_not_json",
    15: "test_an_unknown_type_or_major_version_names_what_is_known",
    16: "test_a_bad_body_says_what_kind_of_bad_it_is",
    17: "test_fault_27_a_domain_object_with_a_type_of_its_own_is_not_unwrapped",
    18: "test_a_validator_that_raises_an_unexpected_error_makes_the_data_invalid",
    19: "test_a_union_of_recursive_classes_is_not_tried_in_every_combination",
    20: "test_a_message_expands_to_four_mebibytes_at_most_unless_told_otherwise",
    21: "test_gzip_of_very_many_members_is_refused_before_it_takes_the_loops_time",
    22: "test_a_zstd_frame_that_wants_gigabytes_of_window_is_refused",
    23: "test_a_body_that_is_not_what_its_encoding_says_is_a_decode_error",
    24: "test_an_unknown_encoding_is_a_payload_error_because_another_worker_may_know_it",
    25: "test_a_body_that_is_wrong_many_times_is_refused_with_few_errors",
    26: "test_everything_else_is_refused_with_the_bucket_and_the_setting",
    27: "test_everything_else_is_refused_with_the_bucket_and_the_setting",
    28: "test_everything_else_is_refused_with_the_bucket_and_the_setting",
    29: "test_every_call_names_the_account_that_the_bucket_has_to_belong_to",
    30: "test_a_worker_dead_letters_a_pointer_elsewhere_at_once_and_reads_nothing",
    31: "test_what_is_no_pointer_is_refused_in_few_words",
    32: "test_a_body_without_a_length_is_read_no_further_than_the_limit",
    33: "test_attributes_of_smartpipes_own_are_not_for_users",
    34: "test_a_reason_written_by_a_producer_does_not_change_how_its_message_is_handled",
    35: "test_what_awss_own_client_offloads_is_handled",
    36: "test_of_ten_attributes_the_last_moves_into_the_reason",
    37: "test_lambda_deletes_handled_messages_and_failed_ones_are_reported",
    38: "test_what_stands_in_source_and_id_confuses_no_two_events",
    39: "test_events_with_an_empty_value_are_known_by_their_ids",
    40: "test_different_parts_have_different_keys_and_equal_parts_the_same",
    41: "test_two_services_with_a_handler_of_one_name_both_handle_an_event",
    42: "test_a_long_key_goes_by_its_hash",
    43: "test_an_sqs_id_is_one_that_sqs_takes_and_no_other_values",
    44: "test_an_event_with_any_id_gets_a_key_that_s3_takes_and_no_other_body_has",
    45: "test_a_row_that_cannot_be_read_is_parked_with_the_reason_and_the_others_are_published",
    46: "test_a_row_that_cannot_be_read_is_parked_with_the_reason_and_the_others_are_published",
    47: "test_attributes_that_were_encoded_twice_are_read_as_they_were_meant",
    48: "test_a_redis_key_that_is_not_a_claim_is_unknown",
    49: "test_a_migration_fails_while_there_are_old_claims_unless_they_may_be_forgotten",
    50: "test_a_text_line_cannot_forge_another_line_or_control_the_terminal",
    51: "test_long_values_are_cut",
    52: "test_a_lone_surrogate_is_written_and_not_lost",
    53: "test_a_label_cannot_control_the_terminal_or_add_a_line",
    54: "test_a_preview_ends_where_the_line_does_and_data_that_is_not_shown_is_not_encoded",
    55: "test_a_variable_that_no_header_may_have_is_refused_by_name_and_without_its_value",
    56: "test_of_the_outboxs_url_nothing_secret_is_told",
    57: "test_a_process_that_goes_on_trying_tells_nothing_secret",
    58: "test_of_endpoints_nothing_secret_is_told",
    59: "test_keys_of_a_process_that_no_header_may_have_are_refused_by_its_name",
    60: "test_a_message_that_kills_its_worker_is_finally_dead_lettered_and_no_other_is_lost",
    61: "test_the_number_of_hanging_handlers_is_limited_and_probes_fail_meanwhile",
    62: "test_a_handler_that_swallows_its_cancellation_is_settled_as_timed_out_and_frees_its_slot",
    63: "test_a_worker_without_file_descriptors_defers_messages",
    64: "test_half_open_connections_to_the_health_port_cost_no_message",
    65: "test_three_hundred_scrapes_at_once_are_one_query_on_one_connection",
    66: "test_a_worker_whose_output_nobody_reads_works_on_and_drains_in_time",
    67: "test_a_response_that_is_too_long_is_cut_off",
    68: "test_an_untrusted_certificate_is_reported_with_advice_and_not_retried",
}


@cache
def _names_of_tests() -> set[str]:
    return {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }


def test_every_row_of_the_page_is_held_by_a_test() -> None:
    rows = [int(number) for number, _ in ROW.findall((ROOT / "docs" / "security.md").read_text())]

    assert rows == sorted(HELD) == list(range(1, len(rows) + 1))
    assert len(rows) >= 60
    assert {name for name in HELD.values() if name not in _names_of_tests()} == set()
