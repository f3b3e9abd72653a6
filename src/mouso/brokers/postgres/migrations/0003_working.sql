-- What a worker does: settle, claim, heartbeat, report.

-- The server's clock without its jumps, for leases. All processes of a host have the same steady clock: it tells how much
-- time has passed since the host's last heartbeat; where the server's says otherwise by more than two seconds it has jumped.
CREATE FUNCTION {schema}.steady(_now bigint, _boot text, _own bigint) RETURNS bigint
LANGUAGE plpgsql STABLE AS $$
DECLARE
    _skew bigint := coalesce((SELECT m.value FROM {schema}.meta m WHERE m.key = 'skew'), 0);
    _last {schema}.steadies;
BEGIN
    SELECT * INTO _last FROM {schema}.steadies s WHERE s.boot = _boot;
    IF abs(_now - _skew - _last.steady - (_own - _last.own)) > 2000 THEN
        RETURN _last.steady + _own - _last.own;
    END IF;
    RETURN _now - _skew;
END $$;

-- The same, noting it.
CREATE FUNCTION {schema}.keep_steady(_now bigint, _boot text, _own bigint) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    _steady bigint;
BEGIN
    PERFORM FROM {schema}.steadies s WHERE s.boot = _boot FOR UPDATE;
    _steady := {schema}.steady(_now, _boot, _own);
    INSERT INTO {schema}.meta AS m (key, value) VALUES ('skew', _now - _steady)
    ON CONFLICT (key) DO UPDATE SET value = excluded.value WHERE m.value <> excluded.value;
    INSERT INTO {schema}.steadies AS s (boot, own, steady) VALUES (_boot, _own, _steady)
    ON CONFLICT (boot) DO UPDATE SET own = excluded.own, steady = excluded.steady WHERE s.own < excluded.own;
    RETURN _steady;
END $$;

-- Announces a worker, or renews its lease; returns its number.
CREATE FUNCTION {schema}.announce(_now bigint, _boot text, _own bigint, _worker text, _info text, _tasks text[])
RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    _lease bigint := {schema}.keep_steady(_now, _boot, _own) + 15000;
    _number integer;
BEGIN
    UPDATE {schema}.workers w
    SET boot = _boot, lease_until = _lease, beat = _now, tasks = _tasks, info = _info, reaped_at = NULL
    WHERE w.id = _worker RETURNING w.n INTO _number;
    IF NOT FOUND THEN
        INSERT INTO {schema}.workers AS w (id, boot, lease_until, beat, tasks, info)
        VALUES (_worker, _boot, _lease, _now, _tasks, _info)
        ON CONFLICT (id) DO UPDATE SET lease_until = excluded.lease_until RETURNING w.n INTO _number;
    END IF;
    RETURN _number;
END $$;

-- Makes jobs final that are locked by this transaction and were not by an outcome.
CREATE FUNCTION {schema}.finish(_now bigint, _seqs bigint[], _state text, _reason text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    WITH gone AS (
        DELETE FROM {schema}.live l WHERE l.seq = ANY (_seqs) RETURNING l.*
    ), told AS (
        INSERT INTO {schema}.tallies (queue, state, n) SELECT g.queue, _state, count(*) FROM gone g GROUP BY g.queue
    )
    INSERT INTO {schema}.history (seq, day, state, queue, finished_at, claims, attempts, crashes, releases, expires_at,
        reason, progress)
    SELECT g.seq, g.day, _state, g.queue, _now, g.claims, g.attempts, g.crashes, g.releases, g.expires_at, _reason,
        g.progress
    FROM gone g;
    DELETE FROM {schema}.keys k WHERE k.seq = ANY (_seqs) AND k.until IS NULL;
END $$;

-- Adds to what is known of a run, and forgets those of long ago.
CREATE FUNCTION {schema}.note(
    _job {schema}.live, _worker text, _run text, _log text, _stack text, _error text
) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO {schema}.runs AS r (seq, day, claims, attempt, worker, run, log, stack, error)
    VALUES (_job.seq, _job.day, _job.claims, _job.attempts + 1, _worker, _run, _log, _stack, _error)
    ON CONFLICT (seq, claims, day) DO UPDATE SET worker = excluded.worker, run = coalesce(excluded.run, r.run),
        log = coalesce(excluded.log, r.log), stack = coalesce(excluded.stack, r.stack),
        error = coalesce(excluded.error, r.error), asked = r.asked AND excluded.stack IS NULL;
    IF _job.claims > 20 THEN
        DELETE FROM {schema}.runs r
        WHERE r.seq = _job.seq AND r.day = _job.day AND r.claims <= _job.claims - 20 AND r.error IS NULL;
        UPDATE {schema}.runs r SET run = NULL, log = NULL, stack = NULL
        WHERE r.seq = _job.seq AND r.day = _job.day AND r.claims = _job.claims - 20;
    END IF;
END $$;

-- Applies outcomes that take more than a completion does; returns the keys of those that were fenced.
CREATE FUNCTION {schema}.settle_each(_now bigint, _worker text, _number integer, _outcomes json) RETURNS bigint[]
LANGUAGE plpgsql AS $$
DECLARE
    _outcome record;
    _job {schema}.live;
    _fenced bigint[] := '{}';
BEGIN
    FOR _outcome IN
        SELECT * FROM json_to_recordset(_outcomes) AS o (key bigint, token bigint, state text, charge text, delay bigint,
            keep bigint, reason text, error text, run text, log text, result text, run_seconds double precision,
            started_at bigint, cpu_seconds double precision, peak_memory bigint, pid integer)
    LOOP
        SELECT * INTO _job FROM {schema}.live l
        WHERE l.seq = _outcome.key AND l.claims = _outcome.token AND l.state = 'running' AND l.worker = _number FOR UPDATE;
        IF NOT FOUND THEN
            _fenced := _fenced || _outcome.key;
            CONTINUE;
        END IF;
        IF _outcome.error IS NOT NULL OR _outcome.log IS NOT NULL
            OR (_outcome.run IS NOT NULL AND _outcome.started_at IS NOT NULL)
        THEN
            PERFORM {schema}.note(_job, _worker,
                CASE WHEN _outcome.log IS NOT NULL OR _outcome.started_at IS NOT NULL THEN _outcome.run END,
                _outcome.log, NULL, '{"at":' || _now || ',' || substr(_outcome.error, 2));
        END IF;
        UPDATE {schema}.runs r SET worker = _worker, run = _outcome.run
        WHERE r.seq = _job.seq AND r.day = _job.day AND r.claims = _job.claims AND r.run IS NULL
            AND coalesce(r.log, r.stack) IS NOT NULL;
        CASE _outcome.charge
            WHEN 'attempts' THEN _job.attempts := _job.attempts + 1;
            WHEN 'crashes' THEN _job.crashes := _job.crashes + 1;
            WHEN 'releases' THEN _job.releases := _job.releases + 1;
            ELSE NULL;
        END CASE;
        IF _job.cancel AND _outcome.state NOT IN ('completed', 'cancelled') THEN
            _outcome.state := 'cancelled';
            _outcome.reason := 'cancelled';
        END IF;
        IF _outcome.state IN ('available', 'scheduled', 'retryable') THEN
            UPDATE {schema}.live l SET state = _outcome.state, worker = NULL, attempts = _job.attempts,
                crashes = _job.crashes, releases = _job.releases,
                due = CASE WHEN _outcome.state <> 'available' THEN _now + _outcome.delay END
            WHERE l.seq = _job.seq;
            CONTINUE;
        END IF;
        DELETE FROM {schema}.live l WHERE l.seq = _job.seq;
        IF _job.holds > 0 THEN
            DELETE FROM {schema}.keys k WHERE k.seq = _job.seq AND k.until IS NULL;
        END IF;
        INSERT INTO {schema}.history (seq, day, state, queue, finished_at, claims, attempts, crashes, releases, expires_at,
            progress, worker, reason, result, keep_until, run_seconds, started_at, cpu_seconds, peak_memory, pid)
        VALUES (_job.seq, _job.day, _outcome.state, _job.queue, _now, _job.claims, _job.attempts, _job.crashes,
            _job.releases, _job.expires_at, _job.progress, _worker, _outcome.reason, decode(_outcome.result, 'hex'),
            _now + _outcome.keep, _outcome.run_seconds, _outcome.started_at, _outcome.cpu_seconds, _outcome.peak_memory,
            _outcome.pid);
        INSERT INTO {schema}.tallies (queue, state, n) VALUES (_job.queue, _outcome.state, 1);
    END LOOP;
    RETURN _fenced;
END $$;

-- Completes jobs, given by columns; returns the keys of those that were fenced. Only a running job has a worker; were the
-- state asked for, the planner would take the index of all running jobs.
CREATE FUNCTION {schema}.complete(
    _now bigint, _worker text, _number integer, _keys bigint[], _tokens bigint[], _runs double precision[],
    _results bytea[], _keeps bigint[], _starts bigint[], _cpus double precision[], _memories bigint[], _pids integer[]
) RETURNS bigint[]
LANGUAGE plpgsql AS $$
DECLARE
    _done bigint[];
    _held boolean;
BEGIN
    WITH outcome AS (
        SELECT * FROM unnest(_keys, _tokens, _runs, _results, _keeps, _starts, _cpus, _memories, _pids)
            AS o (key, token, run_seconds, result, keep, started_at, cpu_seconds, peak_memory, pid)
    ), done AS (
        DELETE FROM {schema}.live l USING outcome o
        WHERE l.seq = o.key AND l.claims = o.token AND l.worker = _number
        RETURNING l.seq, l.day, l.queue, l.claims, l.attempts, l.crashes, l.releases, l.expires_at, l.progress, l.holds, o.*
    ), told AS (
        INSERT INTO {schema}.tallies (queue, state, n) SELECT d.queue, 'completed', count(*) FROM done d GROUP BY d.queue
    ), kept AS (
        INSERT INTO {schema}.history (seq, day, state, queue, finished_at, claims, attempts, crashes, releases, expires_at,
            progress, worker, result, keep_until, run_seconds, started_at, cpu_seconds, peak_memory, pid)
        SELECT d.seq, d.day, 'completed', d.queue, _now, d.claims, d.attempts, d.crashes, d.releases, d.expires_at,
            d.progress, _worker, d.result, _now + d.keep, d.run_seconds, d.started_at, d.cpu_seconds, d.peak_memory, d.pid
        FROM done d
    )
    SELECT array_agg(d.seq), bool_or(d.holds > 0) INTO _done, _held FROM done d;
    IF _held THEN
        DELETE FROM {schema}.keys k WHERE k.seq = ANY (_done) AND k.until IS NULL;
    END IF;
    IF cardinality(_done) = cardinality(_keys) THEN
        RETURN '{}';
    END IF;
    RETURN ARRAY(SELECT o.key FROM unnest(_keys) AS o (key) WHERE o.key <> ALL (coalesce(_done, '{}')));
END $$;

-- The queues that have available jobs, from the one after _after on.
CREATE FUNCTION {schema}.queues_in_turn(_after text) RETURNS text[]
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
    _names text[] := '{}';
    _name text := ''; -- before all; as NULL it would have to be asked for, and the index not be used for the rest
BEGIN
    LOOP
        SELECT l.queue INTO _name FROM {schema}.live l
        WHERE l.state = 'available' AND l.queue > _name ORDER BY l.queue LIMIT 1;
        EXIT WHEN NOT FOUND;
        _names := _names || _name;
    END LOOP;
    RETURN ARRAY(SELECT q FROM unnest(_names) q WHERE q > _after COLLATE "C" ORDER BY q COLLATE "C")
        || ARRAY(SELECT q FROM unnest(_names) q WHERE q <= _after COLLATE "C" ORDER BY q COLLATE "C");
END $$;

-- Sets jobs aside whose task no worker knows; returns the tasks that one does know.
CREATE FUNCTION {schema}.park(_seqs bigint[], _tasks text[]) RETURNS text[]
LANGUAGE plpgsql AS $$
DECLARE
    _known text[] := ARRAY(
        SELECT DISTINCT t.name FROM {schema}.workers w, unnest(w.tasks) AS t (name)
        WHERE w.reaped_at IS NULL AND t.name = ANY (_tasks)
    );
BEGIN
    UPDATE {schema}.live l SET state = 'parked' WHERE l.seq = ANY (_seqs) AND l.task <> ALL (_known);
    RETURN _known;
END $$;

-- Settles, then claims. Each row is a lease but the last, which tells the rest. The queues to serve each have their share;
-- without any, all have, beginning after _after. Rows that vacuum may not remove yet lie before the available ones in the
-- index: where stepping over them is slow, and all jobs have one priority, slow tells the queue, and the worker names the lowest
-- job to look at for a while (_floors, of the queues _bounded). What has come back meanwhile and is lower waits for that long, unless
-- there is too little else.
CREATE FUNCTION {schema}.exchange(
    _now bigint, _worker text, _boot text, _own bigint,
    _keys bigint[], _tokens bigint[], _runs double precision[], _results bytea[], _keeps bigint[], _starts bigint[],
    _cpus double precision[], _memories bigint[], _pids integer[], _outcomes json,
    _limit integer, _queues text[], _shares integer[], _tasks text[], _after text,
    _bounded text[], _floors bigint[]
) RETURNS TABLE (
    key bigint, token integer, id text, task text, queue text, payload bytea, codec text, attempts integer,
    crashes integer, releases integer, enqueued_at bigint, ttl bigint, options bytea, priority smallint,
    fenced text, parked text, next_due bigint, turn text, slow text
)
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET jit = off SET enable_hashjoin = off SET enable_mergejoin = off
    SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off AS $$
DECLARE
    _number integer;
    _fenced bigint[] := '{}';
    _set_aside text[] := '{}';
    _elsewhere text[];
    _paused text[];
    _left integer := _limit;
    _round integer;
    _count integer;
    _found tid[];
    _fresh bigint[];
    _unknown bigint[];
    _strange text[];
    _known text[];
    _slow text[] := '{}';
    _highest smallint;
    _lowest smallint;
    _floor bigint;
    _began timestamptz;
BEGIN
    _now := coalesce(_now, {schema}.now());
    SELECT w.n INTO _number FROM {schema}.workers w WHERE w.id = _worker AND w.reaped_at IS NULL;
    IF _keys IS NOT NULL THEN
        _fenced := {schema}.complete(_now, _worker, _number, _keys, _tokens, _runs, _results, _keeps, _starts, _cpus,
            _memories, _pids);
    END IF;
    IF _outcomes IS NOT NULL THEN
        _fenced := _fenced || {schema}.settle_each(_now, _worker, _number, _outcomes);
    END IF;
    IF _keys IS NOT NULL OR _outcomes IS NOT NULL THEN
        PERFORM {schema}.ring('c');
    END IF;
    IF _limit > 0 THEN
        IF _number IS NULL THEN
            _number := {schema}.announce(_now, _boot, _own, _worker, '', '{}');
        END IF;
        IF _queues IS NULL THEN
            _queues := {schema}.queues_in_turn(_after);
            _count := cardinality(_queues);
            _shares := array_fill((_limit + _count - 1) / greatest(_count, 1), ARRAY[_count]);
            turn := _queues[least(_limit, _count)];
        END IF;
        _paused := ARRAY(
            SELECT q.name FROM {schema}.queues q
            WHERE q.paused AND (q.paused_until IS NULL OR q.paused_until > _now)
        );
        FOR _round IN 1..2 LOOP
            FOR _i IN 1..coalesce(cardinality(_queues), 0) LOOP
                CONTINUE WHEN _shares[_i] < 0 OR _queues[_i] = ANY (_paused);
                _count := CASE _round WHEN 1 THEN least(_left, _shares[_i]) ELSE _left END;
                _elsewhere := '{}';
                _floor := coalesce(_floors[array_position(_bounded, _queues[_i])], 0);
                WHILE _count > 0 LOOP
                    _began := clock_timestamp();
                    SELECT array_agg(p.ctid) FILTER (WHERE p.known), array_agg(p.seq) FILTER (WHERE p.known AND p.fresh),
                        array_agg(p.seq) FILTER (WHERE NOT p.known), array_agg(DISTINCT p.task) FILTER (WHERE NOT p.known),
                        max(p.priority)
                    INTO _found, _fresh, _unknown, _strange, _highest
                    FROM (
                        SELECT l.ctid, l.seq, l.task, l.priority, l.holds = 1 AS fresh,
                            _tasks IS NULL OR l.task = ANY (_tasks) AS known
                        FROM {schema}.live l
                        WHERE l.state = 'available' AND l.queue = _queues[_i]
                            AND (l.expires_at IS NULL OR l.expires_at > _now) AND l.task <> ALL (_elsewhere)
                            AND l.seq >= _floor
                        ORDER BY l.priority DESC, l.seq LIMIT _count FOR UPDATE SKIP LOCKED
                    ) p;
                    IF _floor = 0 AND clock_timestamp() - _began > interval '5 milliseconds' THEN
                        SELECT l.priority INTO _lowest
                        FROM {schema}.live l WHERE l.state = 'available' AND l.queue = _queues[_i]
                        ORDER BY l.priority, l.seq DESC LIMIT 1;
                        IF _lowest = _highest THEN
                            _slow := _slow || _queues[_i];
                        END IF;
                    END IF;
                    IF _found IS NOT NULL THEN
                        RETURN QUERY
                        WITH claimed AS (
                            UPDATE {schema}.live l SET state = 'running', worker = _number, claims = l.claims + 1,
                                holds = CASE l.holds WHEN 2 THEN 2 ELSE 0 END
                            WHERE l.ctid = ANY (_found)
                            RETURNING l.seq, l.day, l.claims, l.task, l.attempts, l.crashes, l.releases, l.expires_at,
                                l.priority
                        )
                        SELECT c.seq, c.claims, j.id, c.task, _queues[_i], j.payload, j.codec, c.attempts, c.crashes,
                            c.releases, j.enqueued_at, c.expires_at - _now, j.options, c.priority, NULL::text, NULL::text,
                            NULL::bigint, NULL::text, NULL::text
                        FROM claimed c JOIN {schema}.jobs j ON j.seq = c.seq AND j.day = c.day
                        ORDER BY c.priority DESC, c.seq;
                        _count := _count - cardinality(_found);
                        _left := _left - cardinality(_found);
                    END IF;
                    IF _fresh IS NOT NULL THEN
                        DELETE FROM {schema}.keys k WHERE k.seq = ANY (_fresh) AND k.until IS NULL;
                    END IF;
                    IF _unknown IS NULL THEN
                        IF _floor > 0 AND _count > 0 THEN
                            _floor := 0;
                            CONTINUE;
                        END IF;
                        IF _count > 0 THEN
                            _shares[_i] := -1; -- it has no more
                        END IF;
                        EXIT;
                    END IF;
                    _known := {schema}.park(_unknown, _strange);
                    _elsewhere := _elsewhere || _known;
                    _set_aside := _set_aside || ARRAY(SELECT s FROM unnest(_strange) s WHERE s <> ALL (_known || _set_aside));
                END LOOP;
            END LOOP;
        END LOOP;
    END IF;
    key := NULL;
    fenced := array_to_json(_fenced)::text;
    parked := array_to_json(_set_aside)::text;
    slow := array_to_json(_slow)::text;
    next_due := (SELECT greatest(l.due - _now, 0) FROM {schema}.live l WHERE l.due IS NOT NULL ORDER BY l.due LIMIT 1);
    RETURN NEXT;
END $$;

-- Renews a worker's lease; returns what it is to be told.
CREATE FUNCTION {schema}.heartbeat(_now bigint, _boot text, _own bigint, _worker text, _info text, _tasks text[])
RETURNS TABLE (kind text, key bigint, token integer)
LANGUAGE plpgsql AS $$
DECLARE
    _number integer;
BEGIN
    _now := coalesce(_now, {schema}.now());
    _number := {schema}.announce(_now, _boot, _own, _worker, _info, _tasks);
    UPDATE {schema}.workers w SET rejoins = false WHERE w.n = _number AND w.rejoins;
    IF FOUND THEN
        RETURN QUERY SELECT 'rejoin', 0::bigint, 0;
    END IF;
    IF EXISTS (SELECT FROM {schema}.live l WHERE l.state = 'parked') THEN
        UPDATE {schema}.live l SET state = 'available' WHERE l.state = 'parked' AND l.task = ANY (_tasks);
        PERFORM {schema}.ring('w');
    END IF;
    RETURN QUERY SELECT 'cancel', l.seq, l.claims FROM {schema}.live l
        WHERE l.state = 'running' AND l.worker = _number AND l.cancel;
    RETURN QUERY SELECT 'stack', l.seq, l.claims
        FROM {schema}.runs r JOIN {schema}.live l ON l.seq = r.seq AND l.claims = r.claims
        WHERE r.asked AND l.state = 'running' AND l.worker = _number;
END $$;

-- Stores news of running claims (a stack as a JSON string); returns the keys of those that were fenced.
CREATE FUNCTION {schema}.report(
    _now bigint, _worker text, _keys bigint[], _tokens bigint[], _progresses text[], _logs text[], _stacks text[]
) RETURNS TABLE (key bigint)
LANGUAGE plpgsql AS $$
DECLARE
    _job {schema}.live;
    _update record;
    _number integer := (SELECT w.n FROM {schema}.workers w WHERE w.id = _worker);
BEGIN
    _now := coalesce(_now, {schema}.now());
    FOR _update IN
        SELECT * FROM unnest(_keys, _tokens, _progresses, _logs, _stacks) AS u (key, token, progress, log, stack)
    LOOP
        SELECT * INTO _job FROM {schema}.live l
        WHERE l.seq = _update.key AND l.claims = _update.token AND l.state = 'running' AND l.worker = _number FOR UPDATE;
        IF NOT FOUND THEN
            RETURN QUERY SELECT _update.key;
            CONTINUE;
        END IF;
        IF _update.progress IS NOT NULL THEN
            UPDATE {schema}.live l SET progress = _update.progress WHERE l.seq = _job.seq;
        END IF;
        IF coalesce(_update.log, _update.stack) IS NOT NULL THEN
            PERFORM {schema}.note(_job, _worker, NULL, _update.log,
                '[' || _now || ',' || _update.stack || ']', NULL);
        END IF;
    END LOOP;
    PERFORM {schema}.ring('c');
END $$;

CREATE FUNCTION {schema}.ask_stack(_id text, _day integer) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO {schema}.runs AS r (seq, day, claims, attempt, asked)
    SELECT l.seq, l.day, l.claims, l.attempts + 1, true
    FROM {schema}.jobs j JOIN {schema}.live l ON l.seq = j.seq
    WHERE j.id = _id AND j.day = _day AND l.state = 'running' FOR SHARE OF l
    ON CONFLICT (seq, claims, day) DO UPDATE SET asked = true, stack = NULL;
    RETURN FOUND;
END $$;
