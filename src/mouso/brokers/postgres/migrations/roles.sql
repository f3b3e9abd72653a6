-- The least rights of three kinds of programs, for roles that log in to be granted; run it as the owner of the schema, after
-- each migration. A producer stores jobs and waits for results, a worker runs them, a dashboard also reads and operates.

DO $$
DECLARE
    _role text;
BEGIN
    FOREACH _role IN ARRAY ARRAY['mouso_producer', 'mouso_worker', 'mouso_dashboard'] LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.rolname = _role) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', _role);
        END IF;
    END LOOP;
END $$;

REVOKE EXECUTE ON FUNCTION {schema}.add_day, {schema}.drop_day, {schema}.expire_holder FROM PUBLIC;
GRANT USAGE ON SCHEMA {schema} TO mouso_producer, mouso_worker, mouso_dashboard;

GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO mouso_producer;
GRANT INSERT ON {schema}.jobs, {schema}.live TO mouso_producer;
GRANT INSERT, UPDATE, DELETE ON {schema}.keys, {schema}.ears TO mouso_producer;
GRANT USAGE ON SEQUENCE {schema}.seqs TO mouso_producer;
GRANT EXECUTE ON FUNCTION {schema}.expire_holder TO mouso_producer, mouso_worker, mouso_dashboard;

GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO mouso_worker, mouso_dashboard;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO mouso_worker, mouso_dashboard;
GRANT EXECUTE ON FUNCTION {schema}.add_day, {schema}.drop_day TO mouso_worker;
