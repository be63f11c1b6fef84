"""The endpoint's other paths: errors, probes, and the OpenAPI document."""

import json

import jsonschema_rs

from tests.integration.endpoint_requests import PATH, assert_refused


def test_other_paths_and_methods_get_the_same_envelope(client, bearer):
    assert_refused(client.get("/", headers=bearer), 404, "not_found")
    assert_refused(client.get(f"{PATH}/", headers=bearer), 404, "not_found")
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        answer = client.request(method, PATH, headers=bearer)
        assert_refused(answer, 405, "method_not_allowed")
        assert answer.headers["allow"] == "GET, HEAD"
    assert_refused(client.post("/livez"), 405, "method_not_allowed")


def test_livez_is_200_and_readyz_is_503_if_the_schema_is_not_known(client, seeded):
    assert client.get("/livez").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}
    seeded.execute(
        "UPDATE schema_migrations SET version = '9999' WHERE version = (SELECT max(version) FROM schema_migrations)"
    )
    unready = client.get("/readyz")
    assert (unready.status_code, unready.json()["status"]) == (503, "unready")
    assert "9999" in unready.json()["reason"]
    assert client.get("/livez").status_code == 200


def test_the_openapi_document_has_every_parameter_code_header_and_example(client):
    document = client.get("/openapi.json").json()

    operation = document["paths"][PATH]["get"]
    assert document["openapi"].startswith("3.1")
    assert [parameter["name"] for parameter in operation["parameters"]] == [
        "kind", "usage_kind", "page", "limit", "cursor", "X-Org-ID", "If-None-Match",
    ]  # fmt: skip
    assert list(operation["responses"]) == ["200", "304", "400", "401", "403", "429", "500"]
    text = json.dumps(document)
    for code in [
        "identity_missing",
        "forbidden",
        "invalid_filter",
        "invalid_page",
        "invalid_parameter",
        "rate_limited",
        "usage.failed",
    ]:
        assert code in text
    for header in ["ETag", "Cache-Control", "Vary", "Www-Authenticate", "Retry-After"]:
        assert f'"{header}"' in text
    assert "cent_01h455vb4pex5vsknk084sn02q" in text


def test_answers_are_valid_by_the_openapi_document(client, bearer):
    document = client.get("/openapi.json").json()

    def check(name, answer):
        schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        jsonschema_rs.validate(schema, answer)

    check("CreditList", client.get(PATH, headers=bearer, params={"limit": 100}).json())
    check("CreditList", client.get(PATH, headers=bearer, params={"page": 99}).json())
    check("Error", client.get(PATH).json())
    check("Error", client.get(PATH, headers=bearer, params={"page": 0}).json())
    check("Health", client.get("/readyz").json())
