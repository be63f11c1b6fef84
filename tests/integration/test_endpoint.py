"""Pages over HTTP: their form, their cursors and their ETags."""

from contextlib import closing

from feeds.cached.epoch import read_epoch
from feeds.cached.worker_connection import WorkerConnection
from feeds.cached.writer import publish, start_new_epoch
from feeds.keys import create_key
from tests.integration.endpoint_requests import MOVEMENTS, PATH, assert_refused, headers_of, refs
from tests.seed import MIXED, seed, seed_published


def test_a_page_has_exactly_the_members_and_headers_that_are_documented(client, bearer):
    answer = client.get(PATH, headers=bearer, params={"page": 2, "kind": "consume", "usage_kind": "ai_usage"})

    page = answer.json()
    assert list(page) == ["object", "items", "pages"]
    assert len(page["items"]) == 10
    last = page["items"][-1]
    assert last.pop("id").startswith("cent_")
    assert last == {
        "object": "credit_entry", "kind": "consume", "credits": -3, "usage_kind": "ai_usage", "usage_ref": "ref_2",
        "created_at": "2026-06-01T10:00:02Z",
    }  # fmt: skip
    pages = page["pages"]
    assert {name: pages[name] for name in list(pages)[:8]} == {
        "object": "cursor", "page": 2, "limit": 20, "total_items": 30, "total_pages": 2, "has_next": False,
        "has_prev": True, "direction": "next",
    }  # fmt: skip
    assert (pages["next_cursor"], len(pages)) == (None, 11)
    assert answer.headers["cache-control"] == "private, no-cache"
    assert answer.headers["vary"] == "Authorization, X-Org-ID"
    assert answer.headers["etag"].startswith('"')


def test_usage_kind_is_present_only_on_consume_and_overflow(client, bearer):
    items = client.get(PATH, headers=bearer, params={"limit": 100}).json()["items"]

    assert {item["kind"] for item in items if "usage_kind" in item} == {"consume", "overflow"}
    assert {item["kind"] for item in items if "usage_kind" not in item} == {"allot", "expire"}
    assert all(item["created_at"].endswith("Z") and "." not in item["created_at"] for item in items)


def test_following_cursors_gives_each_movement_of_the_start_once_while_others_are_added(
    client, bearer, seeded, redis_url
):
    answer, found = client.get(PATH, headers=bearer, params={"limit": 7}), []
    while True:
        found += refs(answer)
        pages = answer.json()["pages"]
        if pages["next_cursor"] is None:
            break
        seed_published(seeded, redis_url, "org_a", MIXED[:3])
        answer = client.get(PATH, headers=bearer, params={"cursor": pages["next_cursor"], "limit": 7})

    assert found == [f"ref_{position}" for position in range(len(MOVEMENTS), 0, -1)]
    back = client.get(PATH, headers=bearer, params={"cursor": pages["prev_cursor"], "limit": 7}).json()
    assert back["pages"]["direction"] == "prev"
    assert [item["usage_ref"] for item in back["items"]] == [f"ref_{position}" for position in range(14, 7, -1)]


def test_a_cursor_gives_the_same_page_of_the_same_filters_again(client, bearer, seeded, redis_url):
    answer = client.get(PATH, headers=bearer, params={"kind": "consume", "page": 2, "limit": 9})
    cursor = answer.json()["pages"]["cursor"]
    seed_published(seeded, redis_url, "org_a", MIXED * 9)

    again = client.get(PATH, headers=bearer, params={"cursor": cursor, "limit": 9})

    assert refs(again) == refs(answer)
    assert again.json()["pages"]["page"] > 2
    assert_refused(
        client.get(PATH, headers=bearer, params={"cursor": cursor, "kind": "allot"}), 400, "credit.usage.invalid_page"
    )


def test_a_cursor_of_another_organisation_is_refused(client, bearer, seeded):
    others = headers_of(create_key(seeded, org_id="org_b")[1])
    cursor = client.get(PATH, headers=bearer).json()["pages"]["next_cursor"]

    assert_refused(client.get(PATH, headers=others, params={"cursor": cursor}), 400, "credit.usage.invalid_page")


def test_a_combination_of_filters_that_no_movement_can_have_is_an_empty_list(client, bearer):
    page = client.get(PATH, headers=bearer, params={"kind": "allot", "usage_kind": "ai_usage"}).json()

    assert (page["items"], page["pages"]["total_items"], page["pages"]["total_pages"]) == ([], 0, 0)
    again = client.get(PATH, headers=bearer, params={"cursor": page["pages"]["cursor"]}).json()
    assert again == page


def test_a_page_past_the_end_is_an_empty_list(client, bearer):
    pages = client.get(PATH, headers=bearer, params={"page": 2147483647}).json()["pages"]

    assert (pages["has_next"], pages["has_prev"], pages["next_cursor"]) == (False, True, None)
    oldest = client.get(PATH, headers=bearer, params={"cursor": pages["prev_cursor"], "limit": 2})
    assert refs(oldest) == ["ref_2", "ref_1"]


def test_head_answers_as_get_without_the_body(client, bearer):
    get, head = client.get(PATH, headers=bearer), client.head(PATH, headers=bearer)

    assert (head.status_code, head.content) == (200, b"")
    assert dict(head.headers) == dict(get.headers)
    assert int(head.headers["content-length"]) == len(get.content)
    assert client.head(PATH).status_code == 401


def test_a_current_etag_gives_304_and_after_a_new_movement_gives_200(client, bearer, seeded, redis_url):
    answer = client.get(PATH, headers=bearer)
    etag = answer.headers["etag"]

    for named in [etag, f"W/{etag}", f'"other", {etag}', "*"]:
        unchanged = client.get(PATH, headers=bearer | {"If-None-Match": named})
        assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", etag)
        assert unchanged.headers["cache-control"] == "private, no-cache"
        assert client.head(PATH, headers=bearer | {"If-None-Match": named}).status_code == 304
    assert client.get(PATH, headers=bearer | {"If-None-Match": '"other"'}).status_code == 200
    seed_published(seeded, redis_url, "org_a", MIXED[:1])
    changed = client.get(PATH, headers=bearer | {"If-None-Match": etag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != etag


def test_a_new_epoch_gives_every_page_another_etag_at_once(client, bearer, seeded):
    requests = [{}, {"page": 2}, {"kind": "allot"}]
    etags = [client.get(PATH, headers=bearer, params=params).headers["etag"] for params in requests]
    start_new_epoch(seeded, read_epoch(seeded))

    for params, etag in zip(requests, etags, strict=True):
        answer = client.get(PATH, headers=bearer | {"If-None-Match": etag}, params=params)
        assert answer.status_code == 200
        assert answer.headers["etag"] != etag


def test_filters_are_checked_before_paging_and_paging_before_other_parameters(client, bearer):
    def refused(query):
        answer = client.get(f"{PATH}?{query}", headers=bearer)
        return answer.status_code, answer.json()["code"].rpartition(".")[2], answer.json()["message"]

    assert refused("kind=x&page=0&foo=1") == (
        400,
        "invalid_filter",
        "A kind or usage_kind filter value is not recognized",
    )
    assert refused("kind=consume&kind=consume&page=0")[1] == "invalid_filter"
    assert refused("page=0&foo=1")[1] == "invalid_page"
    assert refused("foo=1")[1] == "invalid_parameter"
    assert refused("kind=%00")[1] == "invalid_filter"
    assert refused("page=%C2%B2")[1] == "invalid_page"
    assert refused("page=2147483648")[1] == "invalid_page"


def test_movements_published_right_after_a_rebuild_are_served_though_the_endpoint_learns_of_it_later(
    client, bearer, seeded, redis_url
):
    with closing(WorkerConnection(redis_url)) as feeds_redis:
        publish(feeds_redis, seeded, {"org_a": seed(seeded, "org_a", MIXED)})
        for number in range(1, 6):
            client.get(PATH, headers=bearer)
            seeded.execute("UPDATE ledger SET epoch = gen_random_uuid()")
            publish(feeds_redis, seeded, {"org_a": seed(seeded, "org_a", MIXED)})
            pages = client.get(PATH, headers=bearer).json()["pages"]
            assert pages["total_items"] == len(MOVEMENTS) + (number + 1) * len(MIXED)
