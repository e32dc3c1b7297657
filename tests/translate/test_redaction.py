"""What is private is hidden wherever it stands, and what is not stays readable."""

import json
from typing import Any

import pytest

from controlplane.translate.redaction import redacted

pytestmark = pytest.mark.unit

INLINE = {"inline_string": "hush"}


@pytest.mark.parametrize(
    "document",
    [
        pytest.param({"tls_certificate": {"private_key": INLINE, "password": INLINE}}, id="a certificate's key"),
        pytest.param({"tlsCertificate": {"privateKey": {"inlineBytes": "hush"}}}, id="in camelCase"),
        pytest.param({"generic_secret": {"secrets": {"a": INLINE}}}, id="a generic secret of several"),
        pytest.param({"users": INLINE}, id="the passwords of basic authentication"),
        pytest.param({"credentials": [{"key": "hush", "client": "a"}]}, id="API keys"),
        pytest.param({"auth_password": INLINE}, id="the password for a Redis upstream"),
        pytest.param({"downstream_auth_passwords": [INLINE]}, id="the passwords of a Redis proxy"),
        pytest.param({"inline_credential": {"secret_access_key": "hush", "session_token": "hush"}}, id="AWS keys"),
        pytest.param({"google_refresh_token": "hush"}, id="a Google token"),
        pytest.param({"service_account_jwt_access": {"json_key": "hush"}}, id="a Google service account's key"),
        pytest.param({"header": {"key": "Authorization", "value": "hush"}}, id="a header that is added to requests"),
        pytest.param({"key": "cookie", "rawValue": "hush"}, id="a header in bytes"),
        pytest.param({"inline_code": "-----BEGIN PRIVATE KEY-----\nhush"}, id="a key in PEM in any other field"),
    ],
)
def test_hidden_is(document: dict[str, Any]) -> None:
    shown = redacted(document)

    assert "hush" not in json.dumps(shown)
    assert shown.keys() == document.keys()


@pytest.mark.parametrize(
    "document",
    [
        pytest.param({"certificate_chain": {"inline_string": "-----BEGIN CERTIFICATE-----"}}, id="a certificate"),
        pytest.param({"private_key": {"filename": "/etc/key.pem"}}, id="where a key is"),
        pytest.param({"header": {"key": "x-version", "value": "2"}}, id="another header"),
        pytest.param({"token_bucket": {"max_tokens": 3}}, id="a token bucket"),
    ],
)
def test_shown_is(document: dict[str, Any]) -> None:
    assert redacted(document) == document
