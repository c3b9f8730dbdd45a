# Steps that misbehave, roles and functions that change or vanish beneath running
# sagas, a clock that goes backwards: what is at fault fails or is suspended and can
# be repaired, and its neighbours notice nothing.

use strict;
use warnings FATAL => 'all';
use DBI;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $node = PostgreSQL::Test::Cluster->new('hostile');
$node->init;
$node->append_conf('postgresql.conf', q{
shared_preload_libraries = 'coord'
fsync = off
log_statement = none
coord.worker_idle_timeout = 1h
});
$node->start;
$node->safe_psql('postgres', q{
CREATE EXTENSION coord;
CREATE ROLE staff;
CREATE ROLE alice LOGIN;
CREATE ROLE bob LOGIN;
CREATE ROLE carol;
CREATE ROLE dave;
GRANT coord_user TO alice, bob, carol, dave;
CREATE SCHEMA app;
GRANT USAGE, CREATE ON SCHEMA app TO PUBLIC;
CREATE TABLE app.effect (n bigserial, saga bigint, step text, role name DEFAULT current_user, note text,
                         xid xid8 DEFAULT pg_current_xact_id());
GRANT ALL ON app.effect TO PUBLIC;
GRANT ALL ON SEQUENCE app.effect_n_seq TO PUBLIC;
CREATE FUNCTION app.mark(doc jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO app.effect (saga, step, note) VALUES ((doc ->> 'saga_id')::bigint, doc ->> 'step', doc #>> '{input,note}');
  RETURN NULL;
END $$;
CREATE FUNCTION app.unmark(doc jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO app.effect (saga, step) VALUES ((doc ->> 'saga_id')::bigint, 'undo ' || (doc ->> 'step'));
END $$;
CREATE FUNCTION app.refuse(doc jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$;
-- Waits until the test lets it through.
CREATE FUNCTION app.gate(doc jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM app.mark(doc);
  PERFORM pg_advisory_xact_lock_shared(4711, (doc ->> 'saga_id')::int);
  RETURN NULL;
END $$;
});

sub sql { return $node->safe_psql('postgres', join(";\n", @_)) }
sub as
{
  my ($role, @sql) = @_;
  return $node->safe_psql('postgres', join(";\n", "SET ROLE $role", @sql));
}

my $superuser = sql('SELECT current_user');

sub connect_as
{
  my ($role) = @_;
  return DBI->connect('dbi:Pg:dbname=postgres;host=' . $node->host . ';port=' . $node->port, $role, '',
    { RaiseError => 1, PrintError => 0, PrintWarn => 0, AutoCommit => 1 });
}

# Waits until a query returns true; then whether it did.
my $monitor = connect_as($superuser);
sub eventually
{
  my ($query) = @_;
  my $until = time + $PostgreSQL::Test::Utils::timeout_default;
  until (($monitor->selectrow_array($query))[0])
  {
    return 0 if time > $until;
    sleep 0.01;
  }
  return 1;
}

# How a saga ended: waits for the end or for its being stopped.
sub ended
{
  my ($id) = @_;
  eventually("SELECT status NOT IN ('running', 'compensating') FROM coord.sagas WHERE id = $id")
    or diag sql("SELECT * FROM coord.saga_steps WHERE saga_id = $id; SELECT * FROM coord.workers");
  note sql("SELECT name, status, error FROM coord.sagas WHERE id = $id") if $ENV{COORD_VERBOSE};
  return sql("SELECT coord.saga_status($id)");
}

sub steps
{
  my ($id) = @_;
  return sql("SELECT string_agg(concat_ws(' ', step, status, attempt, sqlstate), ', ' ORDER BY ordinal)
              FROM coord.saga_steps WHERE saga_id = $id");
}

sub effects
{
  my ($id) = @_;
  return sql("SELECT string_agg(step, ', ' ORDER BY n) FROM app.effect WHERE saga = $id");
}

# Starts a saga that has a gate and returns its id and who holds the gate shut, when
# the step is there.
sub start_gated
{
  my ($role, $name, $options) = @_;
  my $holder = connect_as($superuser);

  $holder->begin_work;
  $holder->do("SET LOCAL ROLE $role");
  my ($id) = $holder->selectrow_array("SELECT coord.saga_start('$name'" . ($options // '') . ')');
  $holder->do("SELECT pg_advisory_lock(4711, $id)");
  $holder->commit;
  eventually("SELECT EXISTS (SELECT FROM pg_locks WHERE classid = 4711 AND objid = $id AND NOT granted)")
    or die 'nobody comes to the gate';
  return ($id, $holder);
}

sub open_gate
{
  my ($id, $holder) = @_;
  $holder->do("SELECT pg_advisory_unlock(4711, $id)");
  $holder->disconnect;
}

# Suspended, and coord.stuck says why; repaired by the statement given there.
sub is_stuck
{
  my ($id, $why, $what) = @_;
  is(ended($id), 'suspended', "$what: suspended");
  like(sql("SELECT waits_for FROM coord.stuck WHERE kind = 'saga' AND id = '$id'"), $why, "$what: coord.stuck says why");
}

sub repair
{
  my ($id) = @_;
  sql(sql("SELECT repair FROM coord.stuck WHERE kind = 'saga' AND id = '$id'"));
}

sub set_system
{
  my ($name, $value) = @_;
  $node->safe_psql('postgres', defined $value ? "ALTER SYSTEM SET $name = '$value'" : "ALTER SYSTEM RESET $name");
  $node->safe_psql('postgres', 'SELECT pg_reload_conf()');
  my $shown = $value // '';
  eventually("SELECT current_setting('$name') = '$shown'") if defined $value;
}

sub one_worker
{
  set_system('coord.max_workers', 1);
  eventually(q{SELECT count(pg_terminate_backend(pid)) <= 1 FROM coord.workers
               WHERE backend_type = 'coord worker' AND pid <> (SELECT min(pid) FROM coord.workers WHERE backend_type = 'coord worker')});
}

### What a step leaves behind in its session

one_worker();
as('alice', q{
CREATE FUNCTION app.leak(doc jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('search_path', 'pg_temp, nowhere', false);
  PERFORM set_config('statement_timeout', '1ms', false);
  PERFORM set_config('work_mem', '64kB', false);
  PERFORM set_config('row_security', 'off', false);
  PERFORM set_config('app.tenant', 'alice', false);
  SET default_transaction_read_only = on;
  SET DateStyle = 'SQL, DMY';
  CREATE TEMP TABLE leaked (x int);
  CREATE TEMP TABLE pg_class (relname text);
  EXECUTE 'PREPARE leaked AS SELECT 1';
  EXECUTE 'DECLARE leaked CURSOR WITH HOLD FOR SELECT 1';
  PERFORM pg_advisory_lock(1, 2);
  PERFORM setseed(0.5);
  RETURN jsonb_build_object('pid', pg_backend_pid());
END $$},
q{CREATE FUNCTION app.look(doc jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  RETURN jsonb_build_object('pid', pg_backend_pid(), 'state', concat_ws(',', current_user,
    current_setting('statement_timeout'), current_setting('work_mem'), current_setting('row_security'),
    coalesce(current_setting('app.tenant', true), ''), current_setting('default_transaction_read_only'),
    current_setting('DateStyle'), to_regclass('leaked'),
    (SELECT count(*) FROM pg_catalog.pg_class WHERE relnamespace = pg_my_temp_schema()),
    (SELECT count(*) FROM pg_prepared_statements), (SELECT count(*) FROM pg_cursors WHERE name = 'leaked'),
    (SELECT count(*) FROM pg_listening_channels()),
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())));
END $$},
q{SELECT coord.saga_define('leak', ARRAY[coord.step('leak', 'app.leak'), coord.step('look', 'app.look')])});
as('alice', q{CREATE FUNCTION app.leak_and_fail(doc jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN PERFORM app.leak(doc); RAISE 'leaked'; END $$},
q{SELECT coord.saga_define('leak_and_fail', ARRAY[coord.step('leak', 'app.leak_and_fail')])});
as('bob', q{SELECT coord.saga_define('look', ARRAY[coord.step('look', 'app.look')])});

my $id = as('bob', q{SELECT coord.saga_start('look')});
is(ended($id), 'completed', 'a look at a clean session');
my $clean = sql("SELECT coord.saga_output($id) #>> '{look,state}'");
$id = as('alice', q{SELECT coord.saga_start('leak')});
is(ended($id), 'completed', 'a step that leaks what it can');
my $leaker = sql("SELECT coord.saga_output($id) #>> '{leak,pid}'");
(my $as_alice = $clean) =~ s/^bob/alice/;
is(sql("SELECT coord.saga_output($id) #>> '{look,state}'"), $as_alice, 'nothing of it is seen by the next step');
is(ended(as('alice', q{SELECT coord.saga_start('leak_and_fail')})), 'failed', 'one that leaks and fails');
$id = as('bob', q{SELECT coord.saga_start('look')});
is(ended($id), 'completed', 'another role comes after them');
is(sql("SELECT coord.saga_output($id) #>> '{look,pid}'"), $leaker, 'in the same worker');
is(sql("SELECT coord.saga_output($id) #>> '{look,state}'"), $clean, 'and finds nothing of it');

### Ending the transaction, changing the role

as('alice', map({ my ($name, $code) = @$_;
  (qq{CREATE FUNCTION app.$name(doc jsonb) RETURNS void LANGUAGE plpgsql AS \$\$ BEGIN PERFORM app.mark(doc); $code; END \$\$},
   qq{SELECT coord.saga_define('$name', ARRAY[coord.step('first', 'app.mark', 'app.unmark'), coord.step('bad', 'app.$name', retry_delay => '1 ms')])}) }
  [ commits => 'COMMIT' ], [ rolls_back => 'ROLLBACK' ], [ executes_commit => q{EXECUTE 'COMMIT'} ],
  [ commits_in_a_do => q{EXECUTE 'DO $x$ BEGIN COMMIT; END $x$'} ],
  [ ends_savepoint => q{EXECUTE 'ROLLBACK TO SAVEPOINT x'} ], [ prepares => q{EXECUTE 'PREPARE TRANSACTION ''x'''} ],
  [ sets_role => q{SET ROLE bob} ], [ sets_session => qq{SET SESSION AUTHORIZATION "$superuser"} ],
  [ resets_role => q{RESET ROLE} ], [ resets_session => q{RESET SESSION AUTHORIZATION} ],
  [ sets_config => qq{PERFORM set_config('role', '$superuser', false)} ],
  [ listens => q{EXECUTE 'LISTEN leaked'} ], [ discards => q{EXECUTE 'DISCARD ALL'} ], [ runs_pending => q{EXECUTE 'CALL coord.run_pending()'} ]));
foreach my $name (qw(commits rolls_back executes_commit commits_in_a_do ends_savepoint prepares
  sets_role sets_session resets_role resets_session sets_config listens discards runs_pending))
{
  my ($id, $neighbour) = split /\n/, as('alice', qq{SELECT coord.saga_start('$name')},
    qq{SELECT coord.saga_start('leak')});
  is(ended($id), 'compensated', "$name: the step fails");
  is(effects($id), 'first, undo first', "$name: its effect is undone, and what was before it");
  is(ended($neighbour), 'completed', "$name: the neighbour is well");
  is(sql("SELECT coord.saga_output($neighbour) #>> '{look,state}'"), $as_alice, "$name: and itself");
}
is(sql('SELECT count(*) FROM pg_prepared_xacts'), '0', 'no prepared transaction');

### What a step leaves for the end of its transaction

sql(q{
CREATE TABLE app.parent (id int PRIMARY KEY);
CREATE TABLE app.child (id int REFERENCES app.parent DEFERRABLE INITIALLY DEFERRED);
GRANT ALL ON app.parent, app.child TO PUBLIC;
CREATE TABLE app.queued (saga bigint, fail boolean);
GRANT ALL ON app.queued TO PUBLIC;
CREATE FUNCTION app.at_end() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO app.effect (saga, step) VALUES (NEW.saga, 'at end');
  IF NEW.fail THEN RAISE 'too late'; END IF;
  RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER at_end AFTER INSERT ON app.queued DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION app.at_end();
});
as('alice', q{CREATE FUNCTION app.queue(doc jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN INSERT INTO app.queued VALUES ((doc ->> 'saga_id')::bigint, (doc #> '{input,fail}')::boolean); END $$},
q{CREATE FUNCTION app.orphan(doc jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN INSERT INTO app.child VALUES (1); END $$},
q{SELECT coord.saga_define('queue', ARRAY[coord.step('first', 'app.mark', 'app.unmark'), coord.step('queue', 'app.queue'), coord.step('last', 'app.mark')])},
q{SELECT coord.saga_define('orphan', ARRAY[coord.step('first', 'app.mark', 'app.unmark'), coord.step('orphan', 'app.orphan')])});
# twice, to have them as strangers and as acquaintances of the worker
foreach my $time (1, 2)
{
  my @id = split /\n/, as('alice', (map { "SELECT coord.saga_start('queue', '{\"fail\": $_}')" } qw(false true false)),
    q{SELECT coord.saga_start('orphan')}, q{SELECT coord.saga_start('queue', '{"fail": false}')});
  is(join(',', map { ended($_) } @id), 'completed,compensated,completed,compensated,completed', "deferred triggers, time $time");
  is(effects($id[0]), 'first, at end, last', 'they fire with their step');
  is(effects($id[1]), 'first, undo first', 'one that raises undoes its step');
  like(steps($id[1]), qr/queue failed 1 P0001/, 'and is its failure');
  like(steps($id[3]), qr/orphan failed 1 23503/, 'so is a violated foreign key');
}
is(sql("SELECT DISTINCT role FROM app.effect WHERE step = 'at end'"), 'alice', 'they run as the owner');
is(sql('SELECT count(*) FROM app.child'), '0', 'no orphan');

### Too long, too large

as('alice', q{CREATE FUNCTION app.sleep(doc jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN PERFORM app.mark(doc); PERFORM pg_sleep((doc #>> '{input,seconds}')::float8); END $$},
q{CREATE FUNCTION app.large(doc jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT jsonb_build_object('x', repeat('x', 10 * 1024 * 1024)) $$},
q{CREATE FUNCTION app.measure(doc jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT to_jsonb(length(doc #>> '{results,large,x}')) $$},
q{SELECT coord.saga_define('overtime', ARRAY[coord.step('first', 'app.mark', 'app.unmark'),
    coord.step('sleep', 'app.sleep', timeout => '50 ms', retry_delay => '1 ms')])},
q{SELECT coord.saga_define('in_time', ARRAY[coord.step('short', 'app.mark', timeout => '50 ms'), coord.step('sleep', 'app.sleep')])},
q{SELECT coord.saga_define('large', ARRAY[coord.step('large', 'app.large'), coord.step('measure', 'app.measure')])});
my ($over, $in) = split /\n/, as('alice', q{SELECT coord.saga_start('overtime', '{"seconds": 600}')}, q{SELECT coord.saga_start('in_time', '{"seconds": 0.15}')});
is(ended($over), 'compensated', 'a step that sleeps past its timeout');
is(steps($over), 'first compensated 1, sleep failed 3 57014', 'fails after its attempts');
is(effects($over), 'first, undo first', 'and leaves nothing');
is(ended($in), 'completed', 'a timeout does not outlive its step');
$id = as('alice', q{SELECT coord.saga_start('large')});
is(ended($id), 'completed', 'a step that returns 10 MB');
is(sql("SELECT coord.saga_output($id) -> 'measure', length(coord.saga_output($id) #>> '{large,x}')"), '10485760|10485760', 'all of it arrives');

### Privileges and roles that go

set_system('coord.max_workers', 4);
as('alice', q{CREATE FUNCTION app.second(doc jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT app.mark(doc) $$},
q{REVOKE EXECUTE ON FUNCTION app.second FROM PUBLIC},
q{CREATE FUNCTION app.third(doc jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT app.mark(doc) $$},
q{REVOKE EXECUTE ON FUNCTION app.third FROM PUBLIC});
sql('GRANT EXECUTE ON FUNCTION app.second TO bob', 'GRANT EXECUTE ON FUNCTION app.third TO staff', 'GRANT staff TO bob');
as('bob', q{SELECT coord.saga_define('second', ARRAY[coord.step('gate', 'app.gate'), coord.step('second', 'app.second')])},
q{SELECT coord.saga_define('third', ARRAY[coord.step('gate', 'app.gate'), coord.step('third', 'app.third', 'app.unmark')])},
q{SELECT coord.saga_define('plain', ARRAY[coord.step('first', 'app.mark'), coord.step('last', 'app.mark')])});

($id, my $holder) = start_gated('bob', 'second');
sql('REVOKE EXECUTE ON FUNCTION app.second FROM bob');
open_gate($id, $holder);
is_stuck($id, qr/permission denied for function.*second/, 'EXECUTE revoked midway');
sql('GRANT EXECUTE ON FUNCTION app.second TO bob');
repair($id);
is(ended($id), 'completed', 'granted again: it goes on');
is(effects($id), 'gate, second', 'from where it was');

($id, $holder) = start_gated('bob', 'third');
sql('REVOKE staff FROM bob');
open_gate($id, $holder);
is_stuck($id, qr/permission denied for function.*third/, 'membership revoked midway');
isnt($node->psql('postgres', q{SET ROLE bob; SELECT coord.saga_start('third')}), 0, 'nor may it be started');
sql('GRANT staff TO bob');
repair($id);
is(ended($id), 'completed', 'a member again: it goes on');

($id, $holder) = start_gated('bob', 'second');
sql('REVOKE USAGE ON SCHEMA app FROM PUBLIC');
open_gate($id, $holder);
is_stuck($id, qr/second/, 'USAGE of the schema revoked midway');
sql('GRANT USAGE ON SCHEMA app TO PUBLIC');
repair($id);
is(ended($id), 'completed', 'granted again: it goes on');

sql(q{GRANT bob TO carol, dave});
as('carol', q{SELECT coord.saga_define('carols', ARRAY[coord.step('gate', 'app.gate'), coord.step('last', 'app.mark')])});
($id, $holder) = start_gated('carol', 'carols');
sql('ALTER ROLE carol RENAME TO caroline');
open_gate($id, $holder);
is(ended($id), 'completed', 'owner renamed midway');
is(sql("SELECT owner FROM coord.sagas WHERE id = $id"), 'caroline', 'coord.sagas has the new name');
is(sql("SELECT string_agg(DISTINCT role, ',') FROM app.effect WHERE saga = $id AND step = 'last'"), 'caroline', 'so do the steps');

as('dave', q{SELECT coord.saga_define('daves', ARRAY[coord.step('gate', 'app.gate', 'app.unmark'), coord.step('last', 'app.mark')])});
($id, $holder) = start_gated('dave', 'daves');
sql('DROP OWNED BY dave', 'DROP ROLE dave');
my @others = split /\n/, as('bob', q{SELECT coord.saga_start('plain') FROM generate_series(1, 20)});
open_gate($id, $holder);
is_stuck($id, qr/role.*(dave|does not exist)/, 'owner dropped midway');
is(sql("SELECT owner FROM coord.sagas WHERE id = $id"), 'dave', 'coord.sagas has the name he had');
is(join(',', map { ended($_) } @others), join(',', ('completed') x 20), 'others go on');
repair($id);
is(ended($id), 'failed', 'the statement in coord.stuck ends it');
is(sql("SELECT count(*) FROM coord.stuck"), '0', 'nothing is stuck');

### Functions that go, or become something else

as('bob', q{CREATE FUNCTION app.fickle(doc jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT app.mark(doc) $$},
q{CREATE FUNCTION app.fickle_undo(doc jsonb) RETURNS void LANGUAGE sql AS $$ SELECT app.unmark(doc) $$},
q{SELECT coord.saga_define('fickle', ARRAY[coord.step('gate', 'app.gate', 'app.fickle_undo'), coord.step('fickle', 'app.fickle')])},
q{SELECT coord.saga_define('fickle_undo', ARRAY[coord.step('first', 'app.mark', 'app.fickle_undo'),
    coord.step('gate', 'app.gate'), coord.step('last', 'app.refuse')])});
my $fickle = q{CREATE FUNCTION app.fickle(doc jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT app.mark(doc) $$};

my @pending;
push @pending, [ start_gated('bob', 'fickle') ] for 1 .. 3;
as('bob', 'DROP FUNCTION app.fickle');
open_gate(@$_) foreach @pending;
is_stuck($_->[0], qr/function app\.fickle\(jsonb\) does not exist/, 'function dropped') foreach @pending;
isnt($node->psql('postgres', q{SET ROLE bob; SELECT coord.saga_start('fickle')}), 0, 'no new one can be started');
as('bob', $fickle);
repair($_->[0]) foreach @pending;
is(ended($_->[0]), 'completed', 'made again: it goes on') foreach @pending;
is(effects($_->[0]), 'gate, fickle', 'from where it was') foreach @pending;

($id, $holder) = start_gated('bob', 'fickle_undo');
as('bob', 'DROP FUNCTION app.fickle_undo');
open_gate($id, $holder);
is_stuck($id, qr/app\.fickle_undo/, 'compensation dropped');
as('bob', q{CREATE FUNCTION app.fickle_undo(doc jsonb) RETURNS void LANGUAGE sql AS $$ SELECT app.unmark(doc) $$});
repair($id);
is(ended($id), 'compensated', 'made again: it goes on');
is(effects($id), 'first, gate, undo first', 'and undoes what was done');
is(sql("SELECT error FROM coord.sagas WHERE id = $id"), 'refused', 'what the saga failed of is not forgotten');

# Something else by the same name must not be taken for what it was.
foreach my $other (
  [ 'returns integer', q{CREATE FUNCTION app.fickle(doc jsonb) RETURNS int LANGUAGE sql AS 'SELECT 1'} ],
  [ 'returns text', q{CREATE FUNCTION app.fickle(doc jsonb) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$} ],
  [ 'returns a set', q{CREATE FUNCTION app.fickle(doc jsonb) RETURNS SETOF jsonb LANGUAGE sql AS $$ SELECT '1'::jsonb $$} ],
  [ 'is a procedure', q{CREATE PROCEDURE app.fickle(doc jsonb) LANGUAGE sql AS 'SELECT 1'} ],
  [ 'is an aggregate', q{CREATE FUNCTION app.sfunc(s jsonb, v jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT v'; CREATE AGGREGATE app.fickle(jsonb) (SFUNC = app.sfunc, STYPE = jsonb)} ],
  [ 'is a trigger', q{CREATE FUNCTION app.fickle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END'} ])
{
  my ($what, $create) = @$other;
  my ($id, $holder) = start_gated('bob', 'fickle');
  as('bob', 'DROP FUNCTION app.fickle', $create);
  open_gate($id, $holder);
  is_stuck($id, qr/app\.fickle/, "function that now $what");
  as('bob', 'DROP ROUTINE app.fickle', $fickle);
  repair($id);
  is(ended($id), 'completed', "function that now $what: mended");
}

### Definitions that are replaced

as('bob', q{SELECT coord.saga_define('versions', ARRAY[coord.step('gate', 'app.gate'), coord.step('old', 'app.mark')])});
($id, $holder) = start_gated('bob', 'versions');
is(as('bob', q{SELECT coord.saga_define('versions', ARRAY[coord.step('new', 'app.mark'), coord.step('newer', 'app.mark'), coord.step('newest', 'app.mark')])}), '2',
  'a new version while an instance runs');
my $new = as('bob', q{SELECT coord.saga_start('versions')});
is(ended($new), 'completed', 'a new instance');
is(effects($new), 'new, newer, newest', 'has the new version');
isnt($node->psql('postgres', q{SET ROLE bob; SELECT coord.saga_drop('versions')}), 0, 'not to be dropped while an instance runs');
as('bob', q{SELECT coord.saga_activate('versions', 1)});
my ($again, $holder_again) = start_gated('bob', 'versions');
as('bob', q{SELECT coord.saga_activate('versions', 2)});
open_gate($id, $holder);
open_gate($again, $holder_again);
is(ended($_), 'completed', 'an old instance') foreach $id, $again;
is(effects($_), 'gate, old', 'keeps its version') foreach $id, $again;

### Neighbours of slow and heavy ones

as('bob', q{CREATE FUNCTION app.heavy(doc jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM app.mark(doc);
  FOR i IN 1 .. 1000 LOOP
    BEGIN
      INSERT INTO app.parent VALUES (-1);
      RAISE 'undo';
    EXCEPTION WHEN raise_exception THEN
    END;
  END LOOP;
END $$},
q{SELECT coord.saga_define('heavy', ARRAY[coord.step('heavy', 'app.heavy')])},
q{SELECT coord.saga_define('light', ARRAY[coord.step('light', 'app.mark'), coord.step('last', 'app.mark')])},
q{SELECT coord.saga_define('slow', ARRAY[coord.step('slow', 'app.gate')])});
as('bob', q{SELECT count(coord.saga_start(CASE WHEN g % 10 = 0 THEN 'heavy' ELSE 'light' END)) FROM generate_series(1, 400) g});
ok(eventually(q{SELECT count(*) FILTER (WHERE finished_at IS NULL) = 0 FROM coord.sagas WHERE name IN ('heavy', 'light')}), 'steps with a thousand subtransactions');
is(sql(q{SELECT name, status, count(*) FROM coord.sagas WHERE name IN ('heavy', 'light') GROUP BY 1, 2 ORDER BY 1}),
  "heavy|completed|40\nlight|completed|360", 'they and their neighbours are completed');
is(sql(q{SELECT step, count(*), count(DISTINCT saga) FROM app.effect WHERE step IN ('heavy', 'light') GROUP BY 1 ORDER BY 1}),
  "heavy|40|40\nlight|360|360", 'once');
is(sql(q{SELECT count(*) FROM (SELECT FROM app.effect WHERE step = 'heavy' GROUP BY xid HAVING count(*) > 1) x}), '0',
  'no two of them in a transaction');
cmp_ok(sql(q{SELECT count(DISTINCT xid) FROM app.effect WHERE step = 'light'}), '<', 200, 'while the light ones share theirs');

# Neighbours of a blocked step: some are started before it, some after it, in the same
# transaction and by the same role.
foreach my $time ('a stranger', 'known to be slow')
{
  $holder = connect_as($superuser);
  $holder->begin_work;
  $holder->do('SET LOCAL ROLE bob');
  my $before = $holder->selectcol_arrayref(q{SELECT coord.saga_start('light') FROM generate_series(1, 200)});
  ($id) = $holder->selectrow_array(q{SELECT coord.saga_start('slow')});
  my $after = $holder->selectcol_arrayref(q{SELECT coord.saga_start('light') FROM generate_series(1, 200)});
  $holder->do("SELECT pg_advisory_lock(4711, $id)");
  $holder->commit;
  my $ids = join ',', @$before, @$after;
  ok(eventually("SELECT count(*) = 400 FROM coord.sagas WHERE id IN ($ids) AND status = 'completed'"), "$time: its neighbours complete");
  ok(eventually("SELECT EXISTS (SELECT FROM pg_locks WHERE classid = 4711 AND objid = $id AND NOT granted)"), "$time: while it waits");
  my $more = join ',', split /\n/, as('bob', q{SELECT coord.saga_start('light') FROM generate_series(1, 50)});
  ok(eventually("SELECT count(*) = 50 FROM coord.sagas WHERE id IN ($more) AND status = 'completed'"), "$time: so do those that come later");
  is(sql("SELECT coord.saga_status($id)"), 'running', "$time: it still waits");
  open_gate($id, $holder);
  is(ended($id), 'completed', "$time: and completes");
}

### Priority and fairness

one_worker();
sql('SELECT coord.pause()');
as('bob', q{SELECT count(coord.saga_start('light', '{"note": "low"}', priority => -1)) FROM generate_series(1, 30)},
  q{SELECT count(coord.saga_start('light', '{"note": "normal"}')) FROM generate_series(1, 500)},
  q{SELECT count(coord.saga_start('light', '{"note": "high"}', priority => 10)) FROM generate_series(1, 30)},
  q{SELECT count(coord.saga_start('light', '{"note": "highest"}', priority => 20)) FROM generate_series(1, 30)});
sql('SELECT coord.resume()');
ok(eventually(q{SELECT count(*) = 1180 FROM app.effect WHERE note IN ('low', 'normal', 'high', 'highest')}), 'four priorities');
is(sql(q{SELECT string_agg(note, ', ' ORDER BY first), bool_and(before < first)
         FROM (SELECT note, min(n) AS first, coalesce(lag(max(n)) OVER (ORDER BY min(n)), 0) AS before
               FROM app.effect WHERE note IN ('low', 'normal', 'high', 'highest') GROUP BY note) x}),
  'highest, high, normal, low|t', 'each before all of the lower ones');

# One with a large backlog before and after, and one with little.
as('alice', q{SELECT coord.saga_define('much', ARRAY[coord.step('first', 'app.mark')])});
as('bob', q{SELECT coord.saga_define('little', ARRAY[coord.step('first', 'app.mark')])});
sql('SELECT coord.pause()');
as('alice', q{SELECT count(coord.saga_start('much', '{"note": "much"}')) FROM generate_series(1, 1500)});
as('bob', q{SELECT count(coord.saga_start('little', '{"note": "little"}')) FROM generate_series(1, 20)});
as('alice', q{SELECT count(coord.saga_start('much', '{"note": "more"}')) FROM generate_series(1, 1500)});
sql('SELECT coord.resume()');
ok(eventually(q{SELECT count(*) = 3020 FROM app.effect WHERE note IN ('much', 'little', 'more')}), 'two owners');
is(sql(q{SELECT max(n) FILTER (WHERE note = 'little') < percentile_disc(0.5) WITHIN GROUP (ORDER BY n) FILTER (WHERE note = 'more')
         FROM app.effect WHERE note IN ('little', 'more')}), 't', 'the one with little is not behind the one with much');

# In turns: neither waits for the other.
sql('SELECT coord.pause()');
foreach my $n (1 .. 15)
{
  sql('SET ROLE alice', q{SELECT count(coord.saga_start('much', '{"note": "his"}')) FROM generate_series(1, 10)},
    'SET ROLE bob', q{SELECT count(coord.saga_start('little', '{"note": "hers"}')) FROM generate_series(1, 10)});
}
sql('SELECT coord.resume()');
ok(eventually(q{SELECT count(*) = 300 FROM app.effect WHERE note IN ('his', 'hers')}), 'two owners in turns');
cmp_ok(sql(q{SELECT abs(avg(place) FILTER (WHERE note = 'his') - avg(place) FILTER (WHERE note = 'hers'))
             FROM (SELECT note, row_number() OVER (ORDER BY n) AS place FROM app.effect WHERE note IN ('his', 'hers')) x}),
  '<', 75, 'neither is half the way behind');
set_system('coord.max_workers', 4);

### A clock that goes backwards

# A setting moves the clock; a ring makes the workers look.
sub set_clock
{
  my ($time) = @_;
  set_system('coord.test_now', $time);
  eventually("SELECT coord_internal.now() = '$time'") if defined $time;
  sql('SELECT coord_internal.ring()');
}

as('bob', q{CREATE FUNCTION app.twice(doc jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF doc ->> 'attempt' = '1' THEN RAISE 'not yet' USING ERRCODE = '40001'; END IF;
  RETURN app.mark(doc);
END $$},
q{SELECT coord.saga_define('twice', ARRAY[coord.step('first', 'app.mark'), coord.step('twice', 'app.twice', retry_delay => '10 s', retry_backoff => 1)])});

set_clock('2040-01-01 00:00:00+00');
my $late = as('bob', q{SELECT coord.saga_start('twice')});
ok(eventually("SELECT attempt = 1 AND next_attempt_at > '2040-01-01 00:00:00+00' FROM coord.saga_steps WHERE saga_id = $late AND step = 'twice'"),
  'in 2040 a step fails and shall be tried again');
set_clock('2035-01-01 00:00:00+00');
$id = as('bob', q{SELECT coord.saga_start('plain')});
is(ended($id), 'completed', 'in 2035 sagas are run');
my $early = as('bob', q{SELECT coord.saga_start('twice')});
ok(eventually("SELECT attempt = 1 FROM coord.saga_steps WHERE saga_id = $early AND step = 'twice'"), 'in 2035 a step fails and shall be tried again');
is(sql("SELECT status, wake_at > '2040-01-01' FROM coord.sagas WHERE id = $late"), 'running|t', 'the one of 2040 waits');
set_clock('2035-01-01 00:01:00+00');
is(ended($early), 'completed', 'the one of 2035 is tried again in its time');
is(effects($late), 'first', 'the one of 2040 is not');
set_clock('2040-01-01 00:01:00+00');
is(ended($late), 'completed', 'it is in 2040');
is(effects($late), 'first, twice', 'once');
set_clock(undef);
$id = as('bob', q{SELECT coord.saga_start('plain')});
is(ended($id), 'completed', 'and today sagas are run');
is(sql("SELECT count(*) FROM coord.sagas WHERE finished_at IS NULL"), '0', 'none is left');
is(sql('SELECT count(*) FROM coord.stuck'), '0', 'nothing is stuck');

### A step that starts sagas

as('bob', q{CREATE FUNCTION app.start(doc jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT to_jsonb(coord.saga_start('plain', key => doc ->> 'idempotency_key')) $$},
q{SELECT coord.saga_define('start', ARRAY[coord.step('start', 'app.start')])});
$id = as('bob', q{SELECT coord.saga_start('start')});
is(ended($id), 'completed', 'a step starts a saga');
is(ended(sql("SELECT coord.saga_output($id) ->> 'start'")), 'completed', 'which is run');

unlike(slurp_file($node->logfile), qr/PANIC|TRAP:|terminated by signal|that was claimed has changed|has nothing to wait for/, 'nothing bad in the log');
$node->stop;
done_testing();
