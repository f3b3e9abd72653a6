-- What operators and waiting callers ask for.

CREATE FUNCTION {schema}.cancel(_now bigint, _ids text[], _days integer[]) RETURNS TABLE (result text)
LANGUAGE plpgsql AS $$
DECLARE
    _job record;
    _state text;
BEGIN
    _now := coalesce(_now, {schema}.now());
    FOR _job IN
        SELECT a.id, j.seq FROM unnest(_ids, _days) WITH ORDINALITY AS a (id, day, place)
        LEFT JOIN {schema}.jobs j ON j.id = a.id AND j.day = a.day ORDER BY a.place
    LOOP
        SELECT l.state INTO _state FROM {schema}.live l WHERE l.seq = _job.seq FOR UPDATE;
        IF _job.seq IS NULL THEN
            result := 'unknown';
        ELSIF NOT FOUND THEN
            result := 'done';
        ELSIF _state = 'running' THEN
            UPDATE {schema}.live l SET cancel = true WHERE l.seq = _job.seq;
            result := 'requested';
        ELSE
            PERFORM {schema}.finish(_now, ARRAY[_job.seq], 'cancelled', 'cancelled');
            result := 'cancelled';
        END IF;
        RETURN NEXT;
    END LOOP;
    PERFORM {schema}.ring('w'), {schema}.ring('c');
END $$;

-- Makes one job available again.
CREATE FUNCTION {schema}.retry_one(_now bigint, _job {schema}.jobs) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    _live {schema}.live;
    _past {schema}.history;
    _held_by text;
BEGIN
    SELECT * INTO _live FROM {schema}.live l WHERE l.seq = _job.seq FOR UPDATE;
    IF FOUND THEN
        IF _live.state NOT IN ('scheduled', 'retryable') THEN
            RETURN 'live';
        END IF;
        UPDATE {schema}.live l SET state = 'available', due = NULL WHERE l.seq = _job.seq;
        RETURN 'retried';
    END IF;
    SELECT * INTO _past FROM {schema}.history h WHERE h.seq = _job.seq AND h.day = _job.day FOR UPDATE;
    IF NOT FOUND THEN
        RETURN CASE WHEN EXISTS (SELECT FROM {schema}.live l WHERE l.seq = _job.seq) THEN 'live' ELSE 'unknown' END;
    ELSIF _past.state = 'completed' THEN
        RETURN 'done';
    END IF;
    IF _job.unique_scope = 'period' THEN
        PERFORM {schema}.expire_holder(_now, _job.unique_key);
        SELECT k.id INTO _held_by FROM {schema}.keys k
        WHERE k.key = _job.unique_key AND k.id <> _job.id AND (k.until IS NULL OR k.until > _now);
    ELSE
        _held_by := {schema}.hold(_now, _job.unique_key, _job.seq, _job.id, NULL);
    END IF;
    IF _held_by IS NOT NULL THEN
        RETURN 'conflict';
    END IF;
    DELETE FROM {schema}.history h WHERE h.seq = _job.seq AND h.day = _job.day;
    INSERT INTO {schema}.tallies (queue, state, n) VALUES (_past.queue, _past.state, -1);
    INSERT INTO {schema}.live (seq, day, state, queue, task, priority, claims, releases, holds, progress)
    VALUES (_job.seq, _job.day, 'available', _job.queue, _job.task, _job.priority, _past.claims, _past.releases,
        {schema}.holds(_job.unique_key, _job.unique_scope), _past.progress);
    RETURN 'retried';
END $$;

CREATE FUNCTION {schema}.retry(_now bigint, _ids text[], _days integer[], _payload bytea) RETURNS TABLE (result text)
LANGUAGE plpgsql AS $$
DECLARE
    _job {schema}.jobs;
    _place integer;
BEGIN
    _now := coalesce(_now, {schema}.now());
    FOR _place IN 1..cardinality(_ids) LOOP
        SELECT * INTO _job FROM {schema}.jobs j WHERE j.id = _ids[_place] AND j.day = _days[_place];
        result := CASE WHEN FOUND THEN {schema}.retry_one(_now, _job) ELSE 'unknown' END;
        IF result = 'retried' AND _payload IS NOT NULL THEN
            UPDATE {schema}.jobs j SET payload = _payload WHERE j.id = _job.id AND j.day = _job.day;
        END IF;
        RETURN NEXT;
    END LOOP;
    PERFORM {schema}.ring('w'), {schema}.ring('c');
END $$;

CREATE FUNCTION {schema}.delete(_ids text[], _days integer[]) RETURNS TABLE (result text)
LANGUAGE plpgsql AS $$
DECLARE
    _job {schema}.jobs;
    _state text;
    _place integer;
BEGIN
    FOR _place IN 1..cardinality(_ids) LOOP
        SELECT * INTO _job FROM {schema}.jobs j WHERE j.id = _ids[_place] AND j.day = _days[_place] FOR UPDATE;
        IF NOT FOUND THEN
            result := 'unknown';
        ELSE
            SELECT l.state INTO _state FROM {schema}.live l WHERE l.seq = _job.seq FOR UPDATE;
            IF _state = 'running' THEN
                result := 'running';
            ELSE
                INSERT INTO {schema}.tallies (queue, state, n)
                SELECT h.queue, h.state, -1 FROM {schema}.history h WHERE h.seq = _job.seq AND h.day = _job.day
                UNION ALL SELECT _job.queue, 'completed', 0;
                PERFORM {schema}.forget(ARRAY[_job.seq]);
                DELETE FROM {schema}.keys k WHERE k.seq = _job.seq;
                result := 'deleted';
            END IF;
        END IF;
        RETURN NEXT;
    END LOOP;
    PERFORM {schema}.ring('c');
END $$;

CREATE FUNCTION {schema}.purge(_queue text, _limit integer) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    _seqs bigint[] := ARRAY(
        SELECT l.seq FROM {schema}.live l WHERE l.queue = _queue AND l.state <> 'running' ORDER BY l.seq LIMIT _limit FOR UPDATE
    );
BEGIN
    IF _seqs <> '{}' THEN
        INSERT INTO {schema}.tallies (queue, state, n) VALUES (_queue, 'completed', 0);
        PERFORM {schema}.forget(_seqs);
        DELETE FROM {schema}.keys k WHERE k.seq = ANY (_seqs);
    END IF;
    PERFORM {schema}.ring('c');
    RETURN cardinality(_seqs);
END $$;

CREATE FUNCTION {schema}.pause(_queue text, _until bigint) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO {schema}.queues (name, paused, paused_until) VALUES (_queue, true, _until)
    ON CONFLICT (name) DO UPDATE SET paused = true, paused_until = excluded.paused_until
$$;

CREATE FUNCTION {schema}.resume(_queue text) RETURNS void
LANGUAGE sql AS $$
    UPDATE {schema}.queues q SET paused = false, paused_until = NULL WHERE q.name = _queue;
    SELECT {schema}.ring('w')
$$;

-- Everything that is known of some jobs but their errors and runs, by their indexes whatever the statistics say.
CREATE FUNCTION {schema}.read(_seqs bigint[]) RETURNS SETOF {schema}.everything ROWS 10
LANGUAGE plpgsql STABLE SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off SET jit = off
    SET max_parallel_workers_per_gather = 0 AS $$
BEGIN
    RETURN QUERY SELECT * FROM {schema}.everything e WHERE e.seq = ANY (_seqs);
END $$;

-- The keys of jobs.
CREATE FUNCTION {schema}.locate(_ids text[], _days integer[]) RETURNS bigint[]
LANGUAGE plpgsql STABLE SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off SET jit = off
    SET max_parallel_workers_per_gather = 0 AS $$
BEGIN
    RETURN ARRAY(
        SELECT j.seq FROM unnest(_ids, _days) AS a (id, day) JOIN {schema}.jobs j ON j.id = a.id AND j.day = a.day
    );
END $$;

-- What waiting callers see of jobs; those that are unknown are left out.
CREATE FUNCTION {schema}.look(_ids text[], _days integer[])
RETURNS TABLE (id text, state text, attempts integer, progress text)
LANGUAGE plpgsql STABLE SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off SET jit = off
    SET max_parallel_workers_per_gather = 0 AS $$
BEGIN
    RETURN QUERY
    SELECT j.id, coalesce(l.state, h.state), coalesce(l.attempts, h.attempts), coalesce(l.progress, h.progress)
    FROM unnest(_ids, _days) AS a (id, day)
    JOIN {schema}.jobs j ON j.id = a.id AND j.day = a.day
    LEFT JOIN {schema}.live l ON l.seq = j.seq
    LEFT JOIN {schema}.history h ON h.seq = j.seq AND h.day = j.day;
END $$;

-- Numbers of jobs by queue and state, with the instant when the first available one was enqueued, and what is paused.
CREATE FUNCTION {schema}.queue_counts()
RETURNS TABLE (queue text, state text, n bigint, oldest bigint)
LANGUAGE sql STABLE AS $$
    SELECT c.queue, c.state, c.n, CASE WHEN c.state = 'available' THEN (
        SELECT j.enqueued_at FROM {schema}.live l JOIN {schema}.jobs j ON j.seq = l.seq AND j.day = l.day WHERE l.seq = c.first
    ) END
    FROM (
        SELECT l.queue, CASE l.state WHEN 'parked' THEN 'available' ELSE l.state END AS state, count(*) AS n,
            min(l.seq) AS first
        FROM {schema}.live l GROUP BY 1, 2
    ) c
    UNION ALL
    SELECT t.queue, t.state, sum(t.n)::bigint, NULL FROM {schema}.tallies t GROUP BY 1, 2
$$;
