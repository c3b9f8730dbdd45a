# Steps of sagas at participants: exactly once, together with what records them, whatever
# crashes; and many of them in one transaction there.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use CoordTwophase;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $short = $ENV{COORD_SHORT};
my @participants = map { new_participant("p$_") } 1 .. 2;
my $node = new_coordinator('sagas', \@participants, 'coord.max_workers' => 2);
my $dbh = session($node, 'postgres');

# Each effect leaves a row that bears the call's key, so a second one would fail.
foreach my $participant (@participants)
{
  $participant->safe_psql('postgres', q{
    CREATE TABLE effect (key text PRIMARY KEY, saga bigint, step text, at timestamptz DEFAULT clock_timestamp());
    CREATE TABLE later (id bigint UNIQUE DEFERRABLE INITIALLY DEFERRED);
    CREATE FUNCTION take(doc jsonb) RETURNS jsonb LANGUAGE sql AS
      $$ INSERT INTO public.effect VALUES (doc ->> 'idempotency_key', (doc ->> 'saga_id')::bigint, doc ->> 'step')
         RETURNING jsonb_build_object('at', current_setting('port')) $$;
    CREATE FUNCTION give_back(doc jsonb) RETURNS void LANGUAGE sql AS
      $$ INSERT INTO public.effect VALUES (doc ->> 'idempotency_key', (doc ->> 'saga_id')::bigint, 'undo ' || (doc ->> 'step')) $$;
    CREATE FUNCTION refuse(doc jsonb) RETURNS jsonb LANGUAGE plpgsql AS
      $$ BEGIN RAISE 'no funds' USING ERRCODE = 'P0099'; END $$;
    CREATE FUNCTION twice(doc jsonb) RETURNS jsonb LANGUAGE plpgsql AS
      $$ BEGIN
           IF (doc ->> 'attempt')::int < 2 THEN RAISE 'try again' USING ERRCODE = 'P0098'; END IF;
           RETURN doc -> 'attempt';
         END $$;
    CREATE FUNCTION is_late(doc jsonb) RETURNS void LANGUAGE sql AS
      $$ INSERT INTO public.later VALUES (1), (1) $$;
    CREATE FUNCTION number(doc jsonb) RETURNS int LANGUAGE sql AS 'SELECT 1'});
}
$dbh->do($_) foreach (
  q{CREATE TABLE effect (key text PRIMARY KEY, saga bigint)},
  q{CREATE FUNCTION note(doc jsonb) RETURNS void LANGUAGE sql AS
    $$ INSERT INTO public.effect VALUES (doc ->> 'idempotency_key', (doc ->> 'saga_id')::bigint) $$},
  q{SELECT coord.saga_define('order', ARRAY[
      coord.step('pay', 'public.take', 'public.give_back', server => 'p1', max_attempts => 500, retry_delay => '50 ms', retry_max_delay => '200 ms'),
      coord.step('note', 'public.note'),
      coord.step('ship', 'public.take', server => 'p2', max_attempts => 500, retry_delay => '50 ms', retry_max_delay => '200 ms')])},
  q{SELECT coord.saga_define('refused', ARRAY[coord.step('pay', 'public.take', 'public.give_back', server => 'p1'),
      coord.step('ship', 'public.refuse', server => 'p2', max_attempts => 1)])},
  q{SELECT coord.saga_define('twice', ARRAY[coord.step('a', 'twice', server => 'p1', retry_delay => '1 ms', retry_on => '{P0098}')])},
  map { qq{SELECT coord.saga_define('$_', ARRAY[coord.step('a', '$_', server => 'p1', max_attempts => 1)])} } qw(is_late number missing));

sub effects
{
  my ($participant, $id) = @_;
  return $participant->safe_psql('postgres', "SELECT string_agg(step, ',' ORDER BY at) FROM effect WHERE saga = $id");
}

sub run_saga
{
  my ($name) = @_;
  my $id = one($dbh, 'SELECT coord.saga_start(?)', $name);
  eventually("saga $name ends", $dbh, 1, q{SELECT coord.saga_status(?) IN ('completed', 'compensated', 'failed')}, $id);
  return ($id, one($dbh, 'SELECT coord.saga_status(?)', $id));
}

my ($id, $status) = run_saga('order');
is($status, 'completed', 'a saga with steps at two participants is completed');
is(effects($participants[0], $id) . ' ' . effects($participants[1], $id), 'pay ship', 'each step ran where it belongs');
is(one($dbh, q{SELECT coord.saga_output(?) #>> '{ship,at}'}, $id), $participants[1]->port, "what the function returned there is the step's result");

($id, $status) = run_saga('refused');
is($status, 'compensated', 'one whose second participant refuses is compensated');
is(effects($participants[0], $id), 'pay,undo pay', 'the compensation ran at the first');
is(effects($participants[1], $id), '', 'nothing is left at the second');
is(one($dbh, q{SELECT sqlstate || ' ' || error FROM coord.saga_log WHERE saga_id = ? AND event = 'attempt_failed'}, $id),
  'P0099 participant "p2": no funds', 'the log has the SQLSTATE of there');
($id, $status) = run_saga('twice');
is($status, 'completed', 'which retry_on goes by');
($id, $status) = run_saga('is_late');
is(one($dbh, q{SELECT sqlstate FROM coord.saga_log WHERE saga_id = ? AND event = 'attempt_failed'}, $id), '23505',
  'a constraint that is deferred there fails the step, not the commit');
($id, $status) = run_saga('number');
is(one($dbh, q{SELECT sqlstate FROM coord.saga_log WHERE saga_id = ? AND event = 'attempt_failed'}, $id), '42804',
  'a function that returns something else fails');
($id, $status) = run_saga('missing');
is(one($dbh, q{SELECT sqlstate FROM coord.saga_log WHERE saga_id = ? AND event = 'attempt_failed'}, $id), '42883', 'so does one that does not exist');

### Many in one transaction

{
  my $many = 1000;
  my $before = one($dbh, 'SELECT coalesce(sum(cardinality(servers)), 0) FROM coord.twophase_history');
  my $last = one($dbh, q{SELECT max(coord.saga_start('order')) FROM generate_series(1, ?)}, $many);
  eventually('many are done', $dbh, $many, q{SELECT count(*) FROM coord.sagas WHERE status = 'completed' AND id > ?}, $last - $many);
  my $prepares = one($dbh, 'SELECT sum(cardinality(servers)) FROM coord.twophase_history') - $before;
  cmp_ok($prepares, '<=', 2 * $many / 10, "$many sagas of two remote steps took $prepares PREPAREs: a tenth of the steps at most");
  cmp_ok($prepares, '>', 0, 'and some');
}

### Crashes

{
  my $many = $short ? 60 : 300;
  my $kills = $short ? 3 : 12;
  my $first = one($dbh, q{SELECT min(coord.saga_start('order')) FROM generate_series(1, ?)}, $many);
  my $started = one($dbh, 'SELECT count(*) FROM coord.sagas WHERE id >= ?', $first);
  foreach my $round (1 .. $kills)
  {
    my $victim = ($node, @participants)[ $round % 3 ];
    $dbh->disconnect;
    kill_postmaster($victim);
    restart_dead($victim);
    $dbh = reconnect($node);
    one($dbh, q{SELECT count(coord.saga_start('order')) FROM generate_series(1, ?)}, int($many / $kills));
  }
  $started = one($dbh, 'SELECT count(*) FROM coord.sagas WHERE id >= ?', $first);
  eventually('all sagas are completed, after the crashes', $dbh, $started,
    q{SELECT count(*) FROM coord.sagas WHERE status = 'completed' AND id >= ?}, $first);
  is($participants[0]->safe_psql('postgres', "SELECT count(*) FROM effect WHERE step = 'pay' AND saga >= $first"), $started,
    'each has paid exactly once');
  is($participants[1]->safe_psql('postgres', "SELECT count(*) FROM effect WHERE step = 'ship' AND saga >= $first"), $started,
    'each was shipped exactly once');
  is(one($dbh, 'SELECT count(*) FROM effect WHERE saga >= ?', $first), $started, 'and noted exactly once');
  is(one($dbh, q{SELECT count(*) FROM coord.saga_log WHERE saga_id >= ? AND sqlstate = '23505'}, $first), 0, 'no second effect was tried');
  foreach my $participant (@participants)
  {
    my $left = reconnect($participant);
    eventually('nothing is left prepared at ' . $participant->name, $left, 0, 'SELECT count(*) FROM pg_prepared_xacts');
    $left->disconnect;
  }
  eventually('nothing waits for an acknowledgement', $dbh, 0, 'SELECT count(*) FROM coord.twophase_pending');
}

### A participant that is not there

{
  $participants[1]->stop('immediate');
  my $waiting = one($dbh, q{SELECT coord.saga_start('order')});
  eventually('a step waits for its participant', $dbh, 1,
    q{SELECT count(*) > 0 FROM coord.saga_log WHERE saga_id = ? AND step = 'ship' AND sqlstate = 'ZC010'}, $waiting);
  $participants[1]->start;
  eventually('and runs when it is there again', $dbh, 'completed', q{SELECT coord.saga_status(?)}, $waiting);
  is(effects($participants[0], $waiting) . ' ' . effects($participants[1], $waiting), 'pay ship', 'each step once');
}

$dbh->disconnect;
done_testing();
