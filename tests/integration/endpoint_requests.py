"""What do the tests of the endpoint request, and how do they read its answers?"""

from tests.seed import MIXED

PATH = "/credits/usage"
MOVEMENTS = MIXED * 15


def headers_of(secret, **others):
    return {"Authorization": f"Bearer {secret}"} | others


def refs(answer):
    assert answer.status_code == 200, answer.text
    return [item["usage_ref"] for item in answer.json()["items"]]


def assert_refused(answer, status, code):
    """Assert that an answer is this error in the envelope, and holds nothing of any movement. Returns its document."""
    body = answer.json()
    assert (answer.status_code, body["object"], body["code"]) == (status, "error", code)
    assert set(body) <= {"object", "code", "message", "fields"}
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["vary"] == "Authorization, X-Org-ID"
    assert "ref_" not in answer.text
    return body
