-- The partitions: one for each day, made ahead, and dropped as a whole.
--
-- Where few jobs are, they are deleted one by one when their time has come. Where they are many (a day's history is larger
-- than meta.large_day, in bytes) none is: the day is dropped as soon as no more than a few of its jobs are still wanted,
-- and these move to the default partition, where any day may be. So a large store keeps jobs up to a day longer.

CREATE TABLE {schema}.jobs_other PARTITION OF {schema}.jobs FOR VALUES FROM (0) TO (1);
CREATE TABLE {schema}.history_other PARTITION OF {schema}.history FOR VALUES FROM (0) TO (1);
CREATE TABLE {schema}.runs_other PARTITION OF {schema}.runs FOR VALUES FROM (0) TO (1);

INSERT INTO {schema}.meta (key, value) VALUES ('large_day', 33554432);

-- The days that have partitions of their own.
CREATE FUNCTION {schema}.days() RETURNS TABLE (day integer)
LANGUAGE sql STABLE AS $$
    SELECT substr(c.relname, 10)::integer FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = '{schema}.history'::regclass AND c.relname ~ '^history_d[0-9]+$' ORDER BY 1
$$;

-- Makes the partitions of a day, which get what of it is in the default ones; returns whether they are there.
CREATE FUNCTION {schema}.add_day(_day integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '300ms' AS $$
DECLARE
    _table text;
    _part text;
BEGIN
    IF EXISTS (SELECT FROM {schema}.days() d WHERE d.day = _day) THEN
        RETURN true;
    END IF;
    LOCK TABLE {schema}.jobs_default, {schema}.history_default, {schema}.runs_default IN ACCESS EXCLUSIVE MODE;
    FOREACH _table IN ARRAY ARRAY['jobs', 'history', 'runs'] LOOP
        _part := format('{schema}.%I', _table || '_d' || _day);
        EXECUTE format('CREATE TABLE %s (LIKE {schema}.%I INCLUDING DEFAULTS)', _part, _table);
        EXECUTE format('WITH moved AS (DELETE FROM {schema}.%I WHERE day = %s RETURNING *) INSERT INTO %s SELECT * FROM moved',
            _table || '_default', _day, _part);
        EXECUTE format('ALTER TABLE {schema}.%I ATTACH PARTITION %s FOR VALUES FROM (%s) TO (%s)', _table, _part, _day,
            _day + 1);
    END LOOP;
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END $$;

-- Drops the partitions of a day if no more than _most of its jobs are still wanted, which move to the default ones; returns
-- how many jobs went. _over tells how many finished and dead jobs are too many; the first enqueued go first.
CREATE FUNCTION {schema}.drop_day(
    _day integer, _now bigint, _most integer, _finished bigint, _dead bigint, _over_finished bigint, _over_dead bigint
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '300ms' AS $$
DECLARE
    _all_finished boolean;
    _all_dead boolean;
    _wanted bigint[];
    _gone bigint;
    _table text;
BEGIN
    SELECT count(*) FILTER (WHERE h.state <> 'dead') <= _over_finished, count(*) FILTER (WHERE h.state = 'dead') <= _over_dead
    INTO _all_finished, _all_dead FROM {schema}.history h WHERE h.day = _day;
    LOCK TABLE {schema}.jobs, {schema}.history, {schema}.runs IN ACCESS EXCLUSIVE MODE;
    _wanted := ARRAY(
        SELECT j.seq FROM {schema}.jobs j JOIN {schema}.live l ON l.seq = j.seq WHERE j.day = _day
        UNION ALL
        SELECT h.seq FROM {schema}.history h
        WHERE h.day = _day AND NOT CASE h.state WHEN 'dead' THEN _all_dead ELSE _all_finished END
            AND coalesce(h.keep_until, h.finished_at + CASE h.state WHEN 'dead' THEN _dead ELSE _finished END) > _now
        LIMIT _most + 1
    );
    IF cardinality(_wanted) > _most THEN
        RETURN 0;
    END IF;
    WITH gone AS (
        INSERT INTO {schema}.tallies (queue, state, n)
        SELECT h.queue, h.state, -count(*) FROM {schema}.history h WHERE h.day = _day AND h.seq <> ALL (_wanted) GROUP BY 1, 2
        RETURNING n
    )
    SELECT coalesce(-sum(g.n), 0) INTO _gone FROM gone g;
    FOREACH _table IN ARRAY ARRAY['jobs', 'history', 'runs'] LOOP
        EXECUTE format('ALTER TABLE {schema}.%I DETACH PARTITION {schema}.%I', _table, _table || '_d' || _day);
        EXECUTE format('INSERT INTO {schema}.%I SELECT * FROM {schema}.%I WHERE seq = ANY ($1)', _table, _table || '_d' || _day)
            USING _wanted;
        EXECUTE format('DROP TABLE {schema}.%I', _table || '_d' || _day);
    END LOOP;
    RETURN _gone;
EXCEPTION WHEN lock_not_available THEN
    RETURN 0;
END $$;

-- Days of which so much is kept that they are dropped as a whole.
CREATE FUNCTION {schema}.large_days() RETURNS integer[]
LANGUAGE sql STABLE AS $$
    SELECT ARRAY(
        SELECT d.day FROM {schema}.days() d WHERE pg_relation_size(format('{schema}.%I', 'history_d' || d.day)::regclass)
            > (SELECT m.value FROM {schema}.meta m WHERE m.key = 'large_day')
    )
$$;

-- How many jobs of these states are there beyond _most.
CREATE FUNCTION {schema}.excess(_states text[], _most bigint) RETURNS bigint
LANGUAGE sql STABLE AS $$
    SELECT coalesce(sum(t.n), 0)::bigint - _most FROM {schema}.tallies t WHERE t.state = ANY (_states)
$$;

-- Makes the partitions of the next days, and drops those that are over; once a minute. Returns how many jobs went.
CREATE FUNCTION {schema}.turn_days(_now bigint, _finished bigint, _dead bigint, _max_finished bigint, _max_dead bigint)
RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    _instant bigint := {schema}.now();
    _today integer := _instant / 86400000;
    _large integer[];
    _day integer;
    _gone bigint := 0;
BEGIN
    UPDATE {schema}.meta m SET value = _instant WHERE m.key = 'turned' AND abs(_instant - m.value) > 60000;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    FOR _day IN _today.._today + 3 LOOP
        EXIT WHEN NOT {schema}.add_day(_day);
    END LOOP;
    _large := {schema}.large_days();
    FOR _day IN SELECT d.day FROM {schema}.days() d WHERE d.day < _today - 1 OR (d.day < _today AND d.day = ANY (_large)) LOOP
        _gone := _gone + {schema}.drop_day(_day, _now, CASE WHEN _day = ANY (_large) THEN 10000 ELSE 0 END, _finished, _dead,
            {schema}.excess('{completed,cancelled,expired}', _max_finished), {schema}.excess('{dead}', _max_dead));
    END LOOP;
    RETURN _gone;
END $$;

INSERT INTO {schema}.meta (key, value) VALUES ('turned', {schema}.now());
SELECT {schema}.add_day(({schema}.now() / 86400000)::integer + n) FROM generate_series(0, 1) AS d (n);
