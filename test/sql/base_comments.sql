-- One psql command is the reference: every object of the interface has a comment.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS coord;
RESET client_min_messages;
\pset format unaligned
\pset tuples_only on

SELECT 'no comment: ' || oid::regprocedure FROM pg_proc WHERE pronamespace = 'coord'::regnamespace AND obj_description(oid, 'pg_proc') IS NULL ORDER BY 1;
SELECT 'no comment: ' || oid::regclass FROM pg_class WHERE relnamespace = 'coord'::regnamespace AND relkind IN ('v', 'r', 'p', 'S', 'm') AND obj_description(oid, 'pg_class') IS NULL ORDER BY 1;
SELECT 'no comment: ' || attrelid::regclass || '.' || attname FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
  WHERE relnamespace = 'coord'::regnamespace AND relkind IN ('v', 'r', 'p', 'm') AND attnum > 0 AND NOT attisdropped AND col_description(attrelid, attnum) IS NULL ORDER BY 1;
SELECT 'no comment: ' || oid::regtype FROM pg_type t WHERE typnamespace = 'coord'::regnamespace AND typtype IN ('d', 'e', 'r') AND obj_description(oid, 'pg_type') IS NULL ORDER BY 1;
SELECT 'no comment: ' || nspname FROM pg_namespace WHERE nspname IN ('coord', 'coord_internal') AND obj_description(oid, 'pg_namespace') IS NULL ORDER BY 1;
SELECT 'no comment: extension' FROM pg_extension WHERE extname = 'coord' AND obj_description(oid, 'pg_extension') IS NULL;
-- A comment that only repeats the name says nothing.
SELECT 'empty comment: ' || oid::regprocedure FROM pg_proc WHERE pronamespace = 'coord'::regnamespace AND length(obj_description(oid, 'pg_proc')) < 20 ORDER BY 1;
-- What raises an error of a code that is coord's own is in the comment of what raises it.
SELECT 'says nothing of ZC005: ' || oid::regprocedure FROM pg_proc WHERE pronamespace = 'coord'::regnamespace AND proname = 'saga_start' AND obj_description(oid, 'pg_proc') !~ 'ZC005';
