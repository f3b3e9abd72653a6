-- What any worker does in passing: claims of lost workers go back, due jobs become available, old jobs go.

-- Gives back claims that are locked by this transaction; those to be cancelled are cancelled.
CREATE FUNCTION {schema}.give_back(_now bigint, _seqs bigint[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    _cancelled bigint[];
BEGIN
    WITH back AS (
        UPDATE {schema}.live l SET state = 'available', worker = NULL, releases = l.releases + 1
        WHERE l.seq = ANY (_seqs) RETURNING l.seq, l.cancel
    )
    SELECT array_agg(b.seq) INTO _cancelled FROM back b WHERE b.cancel;
    IF _cancelled IS NOT NULL THEN
        PERFORM {schema}.finish(_now, _cancelled, 'cancelled', 'cancelled');
    END IF;
    PERFORM {schema}.ring('w'), {schema}.ring('c');
END $$;

-- Locks up to _limit running claims of a worker.
CREATE FUNCTION {schema}.lock_claims(_number integer, _limit integer) RETURNS bigint[]
LANGUAGE sql AS $$
    SELECT ARRAY(
        SELECT l.seq FROM {schema}.live l WHERE l.state = 'running' AND l.worker = _number
        ORDER BY l.seq LIMIT _limit FOR UPDATE
    )
$$;

CREATE FUNCTION {schema}.retire(_now bigint, _worker text) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    _number integer;
    _seqs bigint[];
BEGIN
    DELETE FROM {schema}.workers w WHERE w.id = _worker RETURNING w.n INTO _number;
    _seqs := {schema}.lock_claims(_number, NULL);
    PERFORM {schema}.give_back(coalesce(_now, {schema}.now()), _seqs);
    RETURN cardinality(_seqs);
END $$;

CREATE FUNCTION {schema}.reconcile(_now bigint, _worker text, _keys bigint[], _tokens bigint[])
RETURNS TABLE (key bigint)
LANGUAGE plpgsql SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
DECLARE
    _number integer;
    _held bigint[];
    _lost bigint[];
BEGIN
    SELECT w.n INTO _number FROM {schema}.workers w WHERE w.id = _worker;
    _held := {schema}.lock_claims(_number, NULL); -- once: in the WHERE below it would be called for every live job
    _lost := ARRAY(
        SELECT l.seq FROM {schema}.live l
        WHERE l.seq = ANY (_held) AND (l.seq, l.claims) NOT IN (SELECT * FROM unnest(_keys, _tokens)) -- is hashed
    );
    PERFORM {schema}.give_back(coalesce(_now, {schema}.now()), _lost);
    RETURN QUERY SELECT h.key FROM unnest(_keys, _tokens) AS h (key, token)
        WHERE NOT EXISTS (
            SELECT FROM {schema}.live l WHERE l.seq = h.key AND l.claims = h.token AND l.state = 'running'
                AND l.worker = _number
        );
END $$;

CREATE FUNCTION {schema}.reap(_now bigint, _boot text, _own bigint, _limit integer) RETURNS TABLE (worker text)
LANGUAGE plpgsql AS $$
DECLARE
    _instant bigint;
    _seqs bigint[];
    _lost record;
BEGIN
    _now := coalesce(_now, {schema}.now());
    _instant := {schema}.keep_steady(_now, _boot, _own);
    FOR _lost IN
        SELECT w.n, w.id FROM {schema}.workers w WHERE w.reaped_at IS NULL AND w.lease_until <= _instant
        ORDER BY w.lease_until, w.n FOR UPDATE
    LOOP
        _seqs := {schema}.lock_claims(_lost.n, _limit);
        IF _seqs <> '{}' THEN
            PERFORM {schema}.give_back(_now, _seqs);
        END IF;
        _limit := _limit - cardinality(_seqs);
        EXIT WHEN EXISTS (SELECT FROM {schema}.live l WHERE l.state = 'running' AND l.worker = _lost.n);
        UPDATE {schema}.workers w SET reaped_at = _instant, rejoins = true WHERE w.n = _lost.n;
        RETURN QUERY SELECT _lost.id;
    END LOOP;
END $$;

CREATE FUNCTION {schema}.promote(_now bigint, _limit integer) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    _expired bigint[];
    _due integer;
BEGIN
    _now := coalesce(_now, {schema}.now());
    _expired := ARRAY(
        SELECT l.seq FROM {schema}.live l WHERE l.expires_at <= _now AND l.state <> 'running'
        LIMIT _limit FOR UPDATE SKIP LOCKED
    );
    IF _expired <> '{}' THEN
        PERFORM {schema}.finish(_now, _expired, 'expired', 'expired');
    END IF;
    UPDATE {schema}.live l SET state = 'available', due = NULL WHERE l.seq = ANY (ARRAY(
        SELECT d.seq FROM {schema}.live d WHERE d.due <= _now ORDER BY d.due
        LIMIT _limit - cardinality(_expired) FOR UPDATE SKIP LOCKED
    ));
    GET DIAGNOSTICS _due = ROW_COUNT;
    IF _due > 0 THEN
        PERFORM {schema}.ring('w');
    END IF;
    IF _due > 0 OR _expired <> '{}' THEN
        PERFORM {schema}.ring('c');
    END IF;
    RETURN _due + cardinality(_expired);
END $$;

-- Deletes all that is kept of jobs but their tallies and what they hold for a period.
CREATE FUNCTION {schema}.forget(_seqs bigint[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM {schema}.live l WHERE l.seq = ANY (_seqs);
    DELETE FROM {schema}.history h WHERE h.seq = ANY (_seqs);
    DELETE FROM {schema}.runs r WHERE r.seq = ANY (_seqs);
    DELETE FROM {schema}.jobs j WHERE j.seq = ANY (_seqs);
    DELETE FROM {schema}.keys k WHERE k.seq = ANY (_seqs) AND k.until IS NULL;
END $$;

-- Adds up what changed the number of finished jobs.
CREATE FUNCTION {schema}.add_up() RETURNS void
LANGUAGE sql AS $$
    WITH added AS (
        DELETE FROM {schema}.tallies t WHERE t.ctid = ANY (ARRAY(
            SELECT c.ctid FROM {schema}.tallies c LIMIT 20000 FOR UPDATE SKIP LOCKED
        )) RETURNING t.queue, t.state, t.n
    )
    INSERT INTO {schema}.tallies (queue, state, n) SELECT a.queue, a.state, sum(a.n) FROM added a GROUP BY 1, 2
$$;

-- The next stretch of finished jobs that are past their retention, which goes on where the last one ended: an index by age
-- would cost every job an insert.
CREATE FUNCTION {schema}.sweep(_now bigint, _limit integer, _finished bigint, _dead bigint, _large integer[])
RETURNS bigint[]
LANGUAGE plpgsql AS $$
DECLARE
    _swept bigint := coalesce((SELECT m.value FROM {schema}.meta m WHERE m.key = 'swept'), 0);
    _old bigint[];
    _looked integer;
    _last bigint;
BEGIN
    SELECT array_agg(s.seq ORDER BY s.seq) FILTER (
        WHERE s.finished_at + CASE s.state WHEN 'dead' THEN _dead ELSE _finished END <= _now AND s.keep_until IS NULL
    ), count(*), max(s.seq) INTO _old, _looked, _last
    FROM (
        SELECT h.seq, h.finished_at, h.state, h.keep_until FROM {schema}.history h
        WHERE h.seq > _swept AND h.day <> ALL (_large) ORDER BY h.seq LIMIT 20000
    ) s;
    _last := CASE WHEN cardinality(_old) > _limit THEN _old[_limit] WHEN _looked = 20000 THEN _last ELSE 0 END;
    INSERT INTO {schema}.meta AS m (key, value) VALUES ('swept', _last)
    ON CONFLICT (key) DO UPDATE SET value = excluded.value WHERE m.value <> excluded.value;
    RETURN coalesce(_old[:_limit], '{}');
END $$;

-- Deletes up to _limit finished jobs past their retention, the first enqueued first; the caller holds the lock of upkeep.
CREATE FUNCTION {schema}.prune_rows(
    _now bigint, _limit integer, _finished bigint, _dead bigint, _max_finished bigint, _max_dead bigint
) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    _large integer[] := {schema}.large_days();
    _seqs bigint[];
    _over bigint;
    _class record;
BEGIN
    DELETE FROM {schema}.keys k WHERE k.until <= _now;
    _seqs := ARRAY(
        SELECT h.seq FROM {schema}.history h WHERE h.keep_until <= _now AND h.day <> ALL (_large) ORDER BY 1 LIMIT _limit
    );
    IF cardinality(_seqs) < _limit THEN
        _seqs := _seqs || {schema}.sweep(_now, _limit - cardinality(_seqs), _finished, _dead, _large);
    END IF;
    FOR _class IN VALUES ('{dead}'::text[], _max_dead), ('{completed,cancelled,expired}', _max_finished) LOOP
        _over := {schema}.excess(_class.column1, _class.column2) - (
            SELECT count(*) FROM {schema}.history h WHERE h.seq = ANY (_seqs) AND h.state = ANY (_class.column1)
        );
        IF _over > 0 THEN
            _seqs := _seqs || ARRAY(
                SELECT h.seq FROM {schema}.history h
                WHERE h.state = ANY (_class.column1) AND h.seq <> ALL (_seqs) AND h.day <> ALL (_large)
                ORDER BY h.seq LIMIT least(_over, _limit - cardinality(_seqs))
            );
        END IF;
    END LOOP;
    IF _seqs <> '{}' THEN
        INSERT INTO {schema}.tallies (queue, state, n)
        SELECT h.queue, h.state, -count(*) FROM {schema}.history h WHERE h.seq = ANY (_seqs) GROUP BY 1, 2;
        PERFORM {schema}.forget(_seqs);
    END IF;
    RETURN cardinality(_seqs);
END $$;

CREATE FUNCTION {schema}.prune(
    _now bigint, _boot text, _own bigint, _limit integer, _finished bigint, _dead bigint, _max_finished bigint,
    _max_dead bigint
) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    _instant bigint;
    _dropped bigint;
BEGIN
    _now := coalesce(_now, {schema}.now());
    PERFORM pg_advisory_xact_lock(hashtext('{schema}'), 2);
    _instant := {schema}.steady(_now, _boot, _own);
    DELETE FROM {schema}.workers w WHERE w.reaped_at < _instant - 3600000;
    PERFORM {schema}.add_up();
    _dropped := {schema}.turn_days(_now, _finished, _dead, _max_finished, _max_dead);
    RETURN _dropped + {schema}.prune_rows(_now, _limit, _finished, _dead, _max_finished, _max_dead);
END $$;
