-- migrate:up

-- Every batch locks rows of this table first, so the migration locks it first too: a batch under way ends, and the next
-- one waits at its start, not in the middle.
LOCK TABLE organisations IN EXCLUSIVE MODE;

-- An organisation may have very many open grants. A batch reads those that are due, and then those that its usages
-- draw, in draw order, so each is one range of an index. Its columns do not change while a grant is drawn: an update of
-- `remaining` stays HOT.
CREATE INDEX grants_in_draw_order ON grants (
    org_no, priority, COALESCE(expires_at, 'infinity'), COALESCE(effective_at, '-infinity'), allot_position
) WHERE open AND allot_position IS NOT NULL;
CREATE INDEX pending_grants ON grants (org_no, effective_at) WHERE open AND allot_position IS NULL;
CREATE INDEX ending_grants ON grants (org_no, expires_at)
WHERE open AND allot_position IS NOT NULL AND expires_at IS NOT NULL;

DROP INDEX open_grants;

-- There may be very many dead letters: they are listed, newest first, and counted, by code or by organisation.
CREATE INDEX dead_letters_by_code ON dead_letters (code, dead_letter_id);
CREATE INDEX dead_letters_by_organisation ON dead_letters (org_id, dead_letter_id) WHERE org_id IS NOT NULL;
