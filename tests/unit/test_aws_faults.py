from __future__ import annotations

import errno
import json
import socket
from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
    SSLError,
)

from smartpipe.limits import MAX_WAIT_SECONDS
from smartpipe.message import Attribute, OutgoingMessage
from smartpipe.transports.aws.configuration import POLL_MARGIN_SECONDS, client_options
from smartpipe.transports.aws.direct import sns, sqs
from smartpipe.transports.aws.entries import publish_entries, read_failures, read_received, send_entries
from smartpipe.transports.aws.errors import classify, read_failure


def answer(code: str, *, status: int = 400, query_code: str | None = None, date: str | None = None) -> ClientError:
    error: dict[str, Any] = {"Code": code, "Message": "what AWS said"}
    if query_code:
        error["QueryErrorCode"] = query_code
    headers = {"date": date} if date else {}
    response: Any = {"Error": error, "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers}}
    return ClientError(response, "Op")


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (answer("RequestThrottled"), "RequestThrottled", True),
        (answer("AWS.SimpleQueueService.RequestThrottled", status=403), "RequestThrottled", True),
        (answer("ThrottlingException"), "ThrottlingException", True),
        (answer("Throttled", status=429), "Throttled", True),
        (answer("KmsThrottled"), "KmsThrottled", True),
        (answer("KMSThrottling"), "KMSThrottling", True),
        (answer("KMS.ThrottlingException"), "KMS.ThrottlingException", True),
        (answer("OverLimit", status=403), "OverLimit", True),
        (answer("InternalError", status=500), "InternalError", True),
        (answer("Anything", status=503), "Anything", True),
        (answer("ExpiredToken", status=403), "ExpiredToken", True),
        (answer("ExpiredTokenException", status=403), "ExpiredToken", True),
        (answer("QueueDoesNotExist"), "QueueDoesNotExist", False),
        (answer("AWS.SimpleQueueService.NonExistentQueue"), "QueueDoesNotExist", False),
        (answer("com.amazonaws.sqs#QueueDoesNotExist"), "QueueDoesNotExist", False),
        (
            answer("AWS.SimpleQueueService.NonExistentQueue", query_code="QueueDoesNotExist"),
            "QueueDoesNotExist",
            False,
        ),
        (answer("NotFound", status=404), "NotFound", False),
        (answer("AccessDenied", status=403), "AccessDenied", False),
        (answer("AuthorizationError", status=403), "AccessDenied", False),
        (answer("InvalidParameter"), "InvalidParameter", False),
        (answer("InvalidMessageContents", status=500), "InvalidMessageContents", False),
        (answer("SomethingNew", status=500), "SomethingNew", True),
        (EndpointConnectionError(endpoint_url="http://x"), "EndpointConnectionError", True),
        (ConnectTimeoutError(endpoint_url="http://x"), "ConnectTimeoutError", True),
        (ReadTimeoutError(endpoint_url="http://x"), "ReadTimeoutError", True),
        (CredentialRetrievalError(provider="imds", error_msg="x"), "CredentialRetrievalError", True),
        (ConnectionResetError("reset"), "ConnectionResetError", True),
        (TimeoutError(), "TimeoutError", True),
        (ValueError("truncated JSON"), "ValueError", True),
        (NoCredentialsError(), "NoCredentials", False),
        (
            SSLError(endpoint_url="https://x", error=OSError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed")),
            "SSLError",
            False,
        ),
        (SSLError(endpoint_url="https://x", error=OSError("[SSL: WRONG_VERSION_NUMBER]")), "SSLError", True),
    ],
)
def test_fault_60_one_classifier_maps_every_spelling(error: Exception, code: str, retryable: bool) -> None:
    fault = classify(error, action="sqs:ReceiveMessage", target="queue 'q'")

    assert (fault.code, fault.retryable) == (code, retryable)


def test_fault_16_a_missing_queue_names_the_command_that_creates_it() -> None:
    fault = classify(answer("QueueDoesNotExist"), action="sqs:ReceiveMessage", target="queue 'staging-mailer'")

    assert "queue 'staging-mailer' does not exist" in str(fault)
    assert "smartpipe topology apply" in str(fault)


def test_fault_16_denied_access_names_the_action_and_the_resource() -> None:
    fault = classify(answer("AccessDenied", status=403), action="sqs:ReceiveMessage", target="queue 'mailer'")

    assert "need the action sqs:ReceiveMessage on queue 'mailer'" in str(fault)


def test_fault_53_clock_skew_is_reported_with_both_times() -> None:
    error = answer("InvalidSignatureException", status=403, date="Mon, 23 Nov 2020 02:00:00 GMT")

    fault = classify(error, action="sqs:ReceiveMessage", target="queue 'q'")

    assert "AWS's 2020-11-23 02:00:00 UTC" in str(fault)
    assert "this machine's clock says 20" in str(fault)


def test_fault_53_skew_without_a_date_still_names_the_clock() -> None:
    fault = classify(answer("RequestTimeTooSkewed"), action="a", target="t")

    assert "check this machine's clock" in str(fault)


@pytest.mark.parametrize(
    ("entry", "retryable"),
    [
        ({"Code": "InternalError", "SenderFault": False}, True),
        ({"Code": "RequestThrottled", "SenderFault": True}, True),
        ({"Code": "AWS.SimpleQueueService.KMS.ThrottlingException", "SenderFault": True}, True),
        ({"Code": "InvalidMessageContents", "SenderFault": True}, False),
        ({"Code": "KMS.AccessDenied", "SenderFault": True}, False),
        ({"Code": "InvalidMessageContents", "SenderFault": False}, False),
        ({"Code": "AWS.SimpleQueueService.InvalidMessageContents"}, False),
        ({"Code": "InvalidParameter", "SenderFault": False}, False),
        ({"Code": "InvalidParameterValue", "SenderFault": "false"}, False),
        ({"Code": "InvalidAttributeValue", "SenderFault": False}, False),
        ({"Code": "ReceiptHandleIsInvalid", "SenderFault": False}, False),
        ({"Code": "BatchRequestTooLong", "SenderFault": False}, False),
        ({"Code": "ThrottlingException", "SenderFault": True}, True),
        ({"Code": "ServiceUnavailable", "SenderFault": "true"}, True),
        ({"Code": "SomethingNew", "SenderFault": False}, True),
        ({"Code": "SomethingNew", "SenderFault": "false"}, True),
        ({"Code": "SomethingNew", "SenderFault": "true"}, False),
        ({"Code": "SomethingNew"}, True),
        ({}, True),
    ],
)
def test_fault_04_a_failed_entry_is_retried_unless_the_sender_is_at_fault(
    entry: dict[str, Any], retryable: bool
) -> None:
    assert read_failure(3, entry).retryable is retryable


XML = """<PublishBatchResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/"><PublishBatchResult><Successful/>
<Failed><member><Id>0</Id><Code>{}</Code><Message>m</Message><SenderFault>{}</SenderFault></member></Failed>
</PublishBatchResult></PublishBatchResponse>"""


@pytest.mark.parametrize(
    ("code", "fault", "retryable"),
    [
        ("InvalidMessageContents", "false", False),
        ("InvalidParameter", "false", False),
        ("Throttled", "true", True),
        ("InternalError", "false", True),
        ("SomethingNew", "true", False),
    ],
)
def test_the_code_of_a_failed_entry_counts_before_the_fault_flag_for_every_protocol(
    code: str, fault: str, retryable: bool
) -> None:
    entry = {"Id": "0", "Code": code, "SenderFault": fault == "true"}
    responses = [
        {"Failed": [entry]},  # botocore, and so the blocking publisher
        sqs.read_response(json.dumps({"Failed": [entry]}).encode()),
        sns.read_response(XML.format(code, fault).encode()),
    ]

    assert [[one.retryable for one in read_failures(found, 1)] for found in responses] == [[retryable]] * 3


def test_fault_26_an_entry_in_neither_list_has_failed_and_may_be_sent_again() -> None:
    found = read_failures({"Successful": [{"Id": "0"}], "Failed": [{"Id": "2", "Code": "Bad", "SenderFault": True}]}, 3)

    assert [(failure.position, failure.code, failure.retryable) for failure in found] == [
        (1, "NotAnswered", True),
        (2, "Bad", False),
    ]


def test_a_response_with_every_entry_in_any_order_has_no_failures() -> None:
    assert read_failures({"Successful": [{"Id": "2"}, {"Id": "0"}, {"Id": "1"}]}, 3) == []
    assert read_failures({"Successful": [{"Id": "0"}], "Failed": []}, 1) == []


def test_entries_have_our_ids_and_typed_attributes() -> None:
    message = OutgoingMessage("body", 4, {"a": Attribute("String", "x"), "b": Attribute("Binary", b"y")}, "g", "d")

    [entry] = send_entries([message])

    assert entry == {
        "Id": "0",
        "MessageBody": "body",
        "MessageAttributes": {
            "a": {"DataType": "String", "StringValue": "x"},
            "b": {"DataType": "Binary", "BinaryValue": b"y"},
        },
        "MessageGroupId": "g",
        "MessageDeduplicationId": "d",
    }
    assert publish_entries([message])[0]["Message"] == "body"


def test_a_received_message_is_read_with_its_attributes_and_times() -> None:
    fields = {
        "MessageId": "m",
        "ReceiptHandle": "r",
        "Body": "b",
        "Attributes": {
            "ApproximateReceiveCount": "3",
            "SentTimestamp": "1700000000250",
            "ApproximateFirstReceiveTimestamp": "1700000001000",
            "MessageGroupId": "tenant",
        },
        "MessageAttributes": {"type": {"DataType": "String", "StringValue": "t"}},
    }

    message = read_received(fields, 5.0)

    assert (message.receive_count, message.sent_at, message.first_received_at) == (3, 1_700_000_000.25, 1_700_000_001)
    assert (message.group_id, message.received_at) == ("tenant", 5.0)
    assert message.attributes == {"type": Attribute("String", "t")}


def test_a_received_message_without_optional_fields_is_read() -> None:
    message = read_received({"MessageId": "m", "ReceiptHandle": "r", "Body": "b"}, 0.0)

    assert (message.receive_count, message.sent_at, message.attributes) == (1, None, {})


def test_fault_23_the_read_timeout_of_a_poll_is_longer_than_its_wait() -> None:
    options = client_options(read_timeout_seconds=MAX_WAIT_SECONDS + POLL_MARGIN_SECONDS)

    assert options["read_timeout"] >= 20 + 5
    assert options["retries"]["total_max_attempts"] == 1


def unreachable(cause: OSError) -> EndpointConnectionError:
    """Return the error of botocore and the direct transport for a connection that could not be opened."""
    return EndpointConnectionError(endpoint_url="https://sqs.eu-west-1.amazonaws.com", error=cause)


@pytest.mark.parametrize("chained", [True, False])
def test_a_connection_without_a_free_file_descriptor_reports_their_limit(chained: bool) -> None:
    cause = OSError(errno.EMFILE, "Too many open files")
    error = unreachable(cause)
    if chained:
        error = EndpointConnectionError(endpoint_url="https://sqs.eu-west-1.amazonaws.com", error="refused")
        error.__cause__ = cause

    fault = classify(error, action="sqs:ReceiveMessage", target="orders")

    assert (fault.code, fault.retryable) == ("EMFILE", True)
    assert "file descriptors (EMFILE): its limit is " in fault.detail
    assert "ulimit -n" in fault.detail
    assert "AWS_ENDPOINT_URL" not in fault.detail


def test_an_unresolvable_host_name_is_reported_with_advice_about_dns() -> None:
    fault = classify(
        unreachable(socket.gaierror(socket.EAI_NONAME, "Name or service not known")),
        action="sqs:ReceiveMessage",
        target="orders",
    )

    assert (fault.code, fault.retryable) == ("EndpointConnectionError", True)
    assert "the host's name cannot be resolved (Name or service not known): check this machine's DNS" in fault.detail
