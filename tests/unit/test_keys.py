import re

from hypothesis import given
from hypothesis import strategies as st

from feeds.keys import BASE62, digest_of, format_key_id, is_well_formed, new_secret, parse_key_id


def test_a_new_secret_has_a_recognisable_form_and_is_unique():
    secrets = {new_secret() for _ in range(1000)}

    assert len(secrets) == 1000
    assert all(re.fullmatch("ufk_[0-9A-Za-z]{36}", secret) and is_well_formed(secret) for secret in secrets)


@given(index=st.integers(0, 39), character=st.sampled_from(BASE62 + "_-\0é"))
def test_the_checksum_detects_a_mistyped_secret(index, character):
    secret = new_secret()
    mistyped = secret[:index] + character + secret[index + 1 :]

    assert is_well_formed(mistyped) == (mistyped == secret)


@given(text=st.text())
def test_a_random_text_is_not_well_formed(text):
    assert not is_well_formed(text)


def test_the_checksum_detects_two_swapped_characters():
    secret = next(secret for secret in iter(new_secret, "") if secret[10] != secret[11])

    assert not is_well_formed(secret[:10] + secret[11] + secret[10] + secret[12:])


def test_the_digest_does_not_hold_the_secret():
    secret = new_secret()

    assert len(digest_of(secret)) == 32
    assert secret.encode() not in digest_of(secret)


@given(key_id=st.uuids())
def test_a_key_id_is_parsed_from_its_text(key_id):
    assert parse_key_id(format_key_id(key_id)) == key_id
