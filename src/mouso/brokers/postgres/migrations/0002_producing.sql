-- Storing jobs.

-- Stores jobs, given by columns (a column that is null is so for all of them), and returns those that it did not: their
-- places from 1, and the job that is there instead.
CREATE FUNCTION {schema}.enqueue(
    _now bigint, _ids text[], _days integer[], _tasks text[], _queues text[], _priorities smallint[], _codecs text[],
    _payloads bytea[], _options bytea[], _delays bigint[], _dues bigint[], _ttls bigint[], _expiries bigint[],
    _keys text[], _scopes text[], _periods bigint[]
) RETURNS TABLE (place integer, holder text)
LANGUAGE plpgsql AS $$
BEGIN
    _now := coalesce(_now, {schema}.now());
    PERFORM {schema}.ring('w');
    IF _keys IS NOT NULL THEN
        RETURN QUERY SELECT * FROM {schema}.enqueue_each(_now, _ids, _days, _tasks, _queues, _priorities, _codecs,
            _payloads, _options, _delays, _dues, _ttls, _expiries, _keys, _scopes, _periods);
        RETURN;
    END IF;
    RETURN QUERY SELECT * FROM {schema}.enqueue_many(_now, _ids, _days, _tasks, _queues, _priorities, _codecs, _payloads,
        _options, _delays, _dues, _ttls, _expiries);
END $$;

-- Stores one job without a unique key; returns whether it did.
CREATE FUNCTION {schema}.enqueue_one(
    _now bigint, _id text, _day integer, _task text, _queue text, _priority smallint, _codec text, _payload bytea,
    _options bytea, _due bigint, _expires_at bigint, _delay bigint, _ttl bigint
) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    _seq bigint := nextval('{schema}.seqs');
BEGIN
    _now := coalesce(_now, {schema}.now());
    IF EXISTS (SELECT FROM {schema}.ears e WHERE e.kind = 'w' AND e.until > clock_timestamp()) THEN
        PERFORM {schema}.ring('w');
    END IF;
    INSERT INTO {schema}.jobs (seq, day, id, task, queue, priority, enqueued_at, codec, options, payload)
    VALUES (_seq, _day, _id, _task, _queue, _priority, _now, _codec, _options, _payload)
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    _due := coalesce(_now + _delay, _due);
    IF _due <= _now THEN
        _due := NULL;
    END IF;
    INSERT INTO {schema}.live (seq, day, state, queue, task, priority, due, expires_at)
    VALUES (_seq, _day, CASE WHEN _due IS NULL THEN 'available' ELSE 'scheduled' END, _queue, _task, _priority, _due,
        coalesce(_now + _ttl, _expires_at));
    RETURN true;
END $$;

-- The same for many jobs without unique keys.
CREATE FUNCTION {schema}.enqueue_many(
    _now bigint, _ids text[], _days integer[], _tasks text[], _queues text[], _priorities smallint[], _codecs text[],
    _payloads bytea[], _options bytea[], _delays bigint[], _dues bigint[], _ttls bigint[], _expiries bigint[]
) RETURNS TABLE (place integer, holder text)
LANGUAGE plpgsql SET enable_nestloop = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
    SET jit = off AS $$
BEGIN
    RETURN QUERY
    WITH given AS MATERIALIZED (
        SELECT nextval('{schema}.seqs') AS seq, g.*, coalesce(_now + g.delay, g.due_at) AS due
        FROM unnest(_ids, _days, _tasks, _queues, _priorities, _codecs, _payloads, _options, _delays, _dues, _ttls,
                _expiries)
            WITH ORDINALITY AS g (id, day, task, queue, priority, codec, payload, options, delay, due_at, ttl, expiry,
                place)
    ), new AS (
        INSERT INTO {schema}.jobs AS j (seq, day, id, task, queue, priority, enqueued_at, codec, options, payload)
        SELECT g.seq, g.day, g.id, g.task, g.queue, g.priority, _now, g.codec, g.options, g.payload
        FROM given g ORDER BY g.id, g.place
        ON CONFLICT DO NOTHING RETURNING j.seq
    ), waiting AS (
        INSERT INTO {schema}.live (seq, day, state, queue, task, priority, due, expires_at)
        SELECT g.seq, g.day, CASE WHEN g.due > _now THEN 'scheduled' ELSE 'available' END, g.queue, g.task, g.priority,
            CASE WHEN g.due > _now THEN g.due END, coalesce(_now + g.ttl, g.expiry)
        FROM given g JOIN new USING (seq)
    )
    SELECT g.place::integer, g.id FROM given g WHERE NOT EXISTS (SELECT FROM new WHERE new.seq = g.seq);
END $$;

-- The same, one after the other, for jobs with unique keys.
CREATE FUNCTION {schema}.enqueue_each(
    _now bigint, _ids text[], _days integer[], _tasks text[], _queues text[], _priorities smallint[], _codecs text[],
    _payloads bytea[], _options bytea[], _delays bigint[], _dues bigint[], _ttls bigint[], _expiries bigint[],
    _keys text[], _scopes text[], _periods bigint[]
) RETURNS TABLE (place integer, holder text)
LANGUAGE plpgsql AS $$
DECLARE
    _job record;
    _seq bigint;
    _held_by text;
BEGIN
    FOR _job IN
        SELECT * FROM unnest(_ids, _days, _tasks, _queues, _priorities, _codecs, _payloads, _options, _delays, _dues,
                _ttls, _expiries, _keys, _scopes, _periods)
            WITH ORDINALITY AS g (id, day, task, queue, priority, codec, payload, options, delay, due, ttl, expiry,
                key, scope, period, place)
    LOOP
        _seq := nextval('{schema}.seqs');
        IF EXISTS (SELECT FROM {schema}.jobs j WHERE j.id = _job.id AND j.day = _job.day) THEN
            _held_by := _job.id;
        ELSE
            _held_by := {schema}.hold(_now, _job.key, _seq, _job.id,
                CASE WHEN _job.scope = 'period' THEN _now + _job.period END);
        END IF;
        IF _held_by IS NULL THEN
            INSERT INTO {schema}.jobs (seq, day, id, task, queue, priority, enqueued_at, codec, options, payload,
                unique_key, unique_scope, unique_period)
            VALUES (_seq, _job.day, _job.id, _job.task, _job.queue, _job.priority, _now, _job.codec, _job.options,
                _job.payload, _job.key, _job.scope, _job.period)
            ON CONFLICT DO NOTHING;
            IF NOT FOUND THEN
                DELETE FROM {schema}.keys k WHERE k.seq = _seq;
                _held_by := _job.id;
            END IF;
        END IF;
        IF _held_by IS NULL THEN
            _job.due := coalesce(_now + _job.delay, _job.due);
            INSERT INTO {schema}.live (seq, day, state, queue, task, priority, due, expires_at, holds)
            VALUES (_seq, _job.day, CASE WHEN _job.due > _now THEN 'scheduled' ELSE 'available' END, _job.queue,
                _job.task, _job.priority, CASE WHEN _job.due > _now THEN _job.due END,
                coalesce(_now + _job.ttl, _job.expiry), {schema}.holds(_job.key, _job.scope));
        ELSE
            place := _job.place;
            holder := _held_by;
            RETURN NEXT;
        END IF;
    END LOOP;
END $$;

CREATE FUNCTION {schema}.holds(_key text, _scope text) RETURNS smallint
LANGUAGE sql IMMUTABLE AS $$
    SELECT (CASE WHEN _key IS NULL THEN 0 WHEN _scope = 'queued' THEN 1 WHEN _scope = 'live' THEN 2 ELSE 0 END)::smallint
$$;

-- Expires the job that holds a unique key if it waits past its expiry, whoever may no more than store jobs; returns whether it
-- did. It is locked before its key is, as everywhere. What a caller says is now counts only up to the present.
CREATE FUNCTION {schema}.expire_holder(_now bigint, _key text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    _seq bigint := (SELECT k.seq FROM {schema}.keys k WHERE k.key = _key AND k.until IS NULL);
BEGIN
    PERFORM FROM {schema}.live l
    WHERE l.seq = _seq AND l.expires_at <= least(_now, {schema}.now()) AND l.state <> 'running' FOR UPDATE;
    IF FOUND THEN
        PERFORM {schema}.finish(_now, ARRAY[_seq], 'expired', 'expired'), {schema}.ring('c');
        RETURN true;
    END IF;
    RETURN false;
END $$;

-- Gives a unique key to a job, or returns the id of the job that holds it. A key of another job is not locked: who ends that
-- job locks it first, and then the key.
CREATE FUNCTION {schema}.hold(_now bigint, _key text, _seq bigint, _id text, _until bigint) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    _held_by text;
BEGIN
    IF _key IS NULL THEN
        RETURN NULL;
    END IF;
    LOOP
        INSERT INTO {schema}.keys (key, seq, id, until) VALUES (_key, _seq, _id, _until) ON CONFLICT DO NOTHING;
        IF FOUND THEN
            RETURN NULL;
        END IF;
        UPDATE {schema}.keys k SET seq = _seq, id = _id, until = _until
        WHERE k.key = _key AND (k.until <= _now OR k.id = _id);
        IF FOUND THEN
            RETURN NULL;
        END IF;
        CONTINUE WHEN {schema}.expire_holder(_now, _key);
        SELECT k.id INTO _held_by FROM {schema}.keys k WHERE k.key = _key;
        IF FOUND THEN
            RETURN _held_by;
        END IF;
    END LOOP;
END $$;
