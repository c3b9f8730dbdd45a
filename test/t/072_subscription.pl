# Subscriptions, without workers and with a clock that is set: handlers run in
# CALL coord.run_pending(), consumers poll.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use DBD::Pg;
use Test::More;

my $node = new_cluster('main', shared_preload_libraries => '', max_prepared_transactions => 5);
my $dbh = session($node, 'postgres');
my $other = session($node, 'postgres');
$dbh->do($_) foreach (
  'CREATE EXTENSION coord',
  'CREATE ROLE ann LOGIN', 'CREATE ROLE bob LOGIN', 'GRANT coord_user TO ann, bob',
  'CREATE SCHEMA work AUTHORIZATION ann', 'SET search_path = work',
  q{SET coord.test_now = '2030-01-01 00:00:00+00'},
  'CREATE TABLE work.done (n serial, pos bigint, type text, key text, note text)',
  'CREATE TABLE work.bad (data jsonb)', 'GRANT ALL ON ALL TABLES IN SCHEMA work TO PUBLIC',
  'GRANT ALL ON ALL SEQUENCES IN SCHEMA work TO PUBLIC',
  q{CREATE FUNCTION work.handle(e coord.event) RETURNS jsonb LANGUAGE plpgsql AS $$
    BEGIN
      INSERT INTO work.done (pos, type, key, note) VALUES (e.pos, e.type, e.key, current_user);
      IF EXISTS (SELECT FROM work.bad WHERE bad.data = e.data) THEN RAISE EXCEPTION 'bad %', e.data; END IF;
      RETURN CASE WHEN e.data <> 'null' THEN jsonb_build_object('of', e.data) END;
    END $$},
  q{CREATE FUNCTION work.handle_json(e jsonb) RETURNS void LANGUAGE sql AS
    $$ INSERT INTO work.done (pos, type, key, note) VALUES ((e ->> 'pos')::bigint, e ->> 'type', e ->> 'key',
       (SELECT string_agg(k, ',' ORDER BY k) FROM jsonb_object_keys(e) k)) $$},
  q{CREATE FUNCTION work.handle_many(e coord.event[]) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
      INSERT INTO work.done (pos, type, key, note) SELECT pos, type, key, array_length(e, 1) FROM unnest(e);
      IF EXISTS (SELECT FROM work.bad b JOIN unnest(e) x ON x.data = b.data) THEN RAISE EXCEPTION 'bad batch'; END IF;
    END $$});

sub handle { return one($dbh, 'CALL coord.run_pending()') }
sub publish { my ($type, $data, $key) = @_; return one($dbh, 'SELECT coord.publish(?, ?, ?)', $type, $data, $key) }
sub refuse { $dbh->do('TRUNCATE work.bad'); $dbh->do('INSERT INTO work.bad VALUES (?)', undef, $_) foreach @_; return }
sub clock { one($_, q{SELECT set_config('coord.test_now', ?, false)}, "2030-01-01 $_[0]+00") foreach ($dbh, $other); return }

# The types and data, or another column, that were handled since the last time.
sub done
{
  my ($column) = @_;
  $column ||= 'type';
  my $seen = one($dbh, qq{SELECT coalesce(string_agg($column, ' ' ORDER BY n), '') FROM work.done});
  $dbh->do('TRUNCATE work.done');
  return $seen;
}
sub state_of
{
  my ($name) = @_;
  return join '|', map { $_ // '' } $dbh->selectrow_array(
    'SELECT state, parked, waiting, last_error FROM coord.subscriptions WHERE name = ?', undef, $name);
}

### A handler

publish('a.before', '1');
$dbh->do(q{SELECT coord.subscribe('s', '{a.*,exact}', 'handle', emits => 'result')});
is(handle(), 0, 'a new subscription begins now');
$dbh->do(q{SET coord.correlation_id = '01234567-89ab-cdef-0123-456789abcdef'});
publish('a.one', '1', 'k');
$dbh->do(q{RESET coord.correlation_id});
publish($_, 'null') foreach ('exact', 'exactly', 'b.one');
$dbh->do('BEGIN');
publish('a.rolled-back', '1');
$dbh->do('ROLLBACK');
cmp_ok(handle(), '>', 0, 'events are handled');
is(done(), 'a.one exact', 'those that are wanted, in order');
is(one($dbh, q{SELECT count(*) FROM coord.events WHERE type = 'result'}), 1, 'what the handler returns is an event, null is none');
is(one($dbh, q{SELECT r.data = '{"of": 1}' AND r.causation_id = e.event_id AND r.correlation_id = e.correlation_id AND r.owner = e.owner
    FROM coord.events r, coord.events e WHERE r.type = 'result' AND e.type = 'a.one'}), 1,
  'with its cause and the same correlation id');
is(handle(), 0, 'nothing is handled twice');

# Whoever publishes holds it back, and only he.
$other->do('BEGIN');
one($other, q{SELECT coord.publish('a.slow', '1')});
publish('a.fast', '1');
handle();
is(done(), '', 'what comes after an open publisher waits');
$other->do('COMMIT');
handle();
is(done(), 'a.slow a.fast', 'and is handled in order');
$other->do('BEGIN');
one($other, q{SELECT coord.publish('a.slow', '1')});
$other->do(q{PREPARE TRANSACTION 'p'});
publish('a.fast', '1');
handle();
is(done(), '', 'also after one that is prepared');
$other->do(q{ROLLBACK PREPARED 'p'});
handle();
is(done(), 'a.fast', 'until it is finished');

# Altered in place.
$dbh->do(q{SELECT coord.subscribe('s', '{a.*}', 'handle_json', filter => '$.data ? (@ > 5)')});
publish('a.x', $_) foreach (4, 6, 5, 7);
handle();
is(done('note'), join(' ', (join ',', sort qw(pos stream version type key data metadata event_id coordination_id step_id
  correlation_id causation_id published_at)) x 2), 'with another handler and a filter it keeps its cursor; events are objects');
my $made = one($dbh, q{SELECT xmin FROM coord_internal.subscription WHERE name = 's'});
$dbh->do(q{SELECT coord.subscribe('s', '{a.*}', 'handle_json', filter => '$.data ? (@ > 5)')});
is(one($dbh, q{SELECT xmin FROM coord_internal.subscription WHERE name = 's'}), $made, 'the same again changes nothing');
is(one($dbh, q{SELECT coord.unsubscribe('s')}), 1, 'unsubscribed');
is(one($dbh, q{SELECT coord.unsubscribe('s')}), 0, 'once');

# Streams.
$dbh->do(q{SELECT coord.subscribe('s', handler => 'handle', streams => '{account-*}', start_from => 'beginning')});
$dbh->do(q{SELECT coord.append('account-1', 'opened', '1'), coord.append('cart-1', 'added', '1'), coord.append('account-1', 'paid', '2')});
publish('account-1', '1');
handle();
is(done(), 'opened paid', 'events of streams');
$dbh->do(q{SELECT coord.unsubscribe('s')});

### Failures

my $subscribe = sub {
  my ($on_error, %options) = @_;
  $dbh->do(q{SELECT coord.unsubscribe('f')});
  $dbh->do(q{SELECT coord.subscribe('f', '{t.*}', ?, mode => ?, on_error => ?, max_attempts => 3)}, undef,
    $options{handler} || 'handle', $options{mode} || 'each', $on_error);
};
$subscribe->('park_key');
refuse(2);
clock('00:00:00');
publish("t.$_->[0]", $_->[0], $_->[1]) foreach ([1, 'k'], [2, 'k'], [3, 'k'], [4, 'l'], [5], [6, 'k']);
handle();
is(done(), 't.1 t.4 t.5', 'events of the key of one that failed wait, the others do not; what it did is undone');
is(state_of('f'), 'active|0|3|bad 2', 'it is seen');
publish('t.7', '7', 'k');
handle();
is(done(), '', 'so do later ones');
clock('00:00:01');
handle();
is(one($dbh, 'SELECT attempts FROM coord_internal.subscription_event WHERE attempts > 0'), 2, 'tried again after at most a second');
refuse();
clock('00:00:03');
handle();
is(done(), 't.2 t.3 t.6 t.7', 'and what waited comes after it, in order');
is(state_of('f'), 'active|0|0|', 'nothing is left');

refuse(2, 3);
publish("t.$_->[0]", $_->[0], $_->[1]) foreach ([1, 'k'], [2, 'k'], [3, 'l'], [4, 'k'], [5, 'l']);
for my $minute (1 .. 9) { clock("00:0$minute:00"); handle() }
is(done(), 't.1', 'what fails is tried as often as allowed');
is(state_of('f') =~ s/bad .//r, 'active|2|2|', 'then it is parked');
is(join(' ', map { join ',', map { $_ // '' } @$_ } @{ $dbh->selectall_arrayref('SELECT type, key, attempts, sqlstate, error, waiting FROM coord.parked ORDER BY pos') }),
  't.2,k,3,P0001,bad 2,1 t.3,l,3,P0001,bad 3,1', 'with why, and what waits behind it');
my $position = one($dbh, q{SELECT position FROM coord.subscriptions WHERE name = 'f'});
refuse();
is(one($dbh, q{SELECT coord.parked_replay('f', 'k')}), 1, 'replayed');
publish('t.8', '8', 'm');
handle();
is(done(), 't.2 t.4 t.8', 'those of a key, while others arrive') or diag state_of('f');
my $parked = one($dbh, 'SELECT pos FROM coord.parked');
is(one($dbh, q{SELECT coord.parked_drop('f', ?, 'no use')}, $parked), 1, 'given up');
is(one($dbh, q{SELECT coord.parked_drop('f', ?)}, $parked), 0, 'once');
handle();
is(done(), 't.5', 'what waited behind it goes on');
is(one($dbh, q{SELECT coord.parked_replay('f')}), 0, 'nothing is parked any more');
cmp_ok(one($dbh, q{SELECT position FROM coord.subscriptions WHERE name = 'f'}), '>', $position, 'the cursor went its way');

$subscribe->('park_event');
refuse(2);
clock('01:00:00');
publish("t.$_->[0]", $_->[0], $_->[1]) foreach ([1, 'k'], [2, 'k'], [3, 'k']);
handle();
is(done(), 't.1 t.3', 'park_event: nothing waits');
is(state_of('f'), 'active|0|1|bad 2', 'but the one');

$subscribe->('stop');
publish("t.$_->[0]", $_->[0], $_->[1]) foreach ([1, 'k'], [2, 'k'], [3, 'l'], [4]);
handle();
is(done(), 't.1', 'stop: everything waits');
for my $minute (1 .. 9) { clock("01:0$minute:00"); handle() }
is(state_of('f'), 'stopped|1|0|bad 2', 'stopped');
refuse();
one($dbh, q{SELECT coord.parked_replay('f')});
handle();
is(done(), 't.2 t.3 t.4', 'and goes on');

$subscribe->('park_key', mode => 'batch', handler => 'handle_many');
publish("t.$_", $_) foreach (1 .. 5);
handle();
like(done(q{type || '/' || note}), qr{t\.1/1|t\.1/5}, 'a batch');
refuse(3);
publish("t.$_", $_, 'k') foreach (1 .. 4);
handle();
is(done(), 't.1 t.2', 'of a batch that fails each is tried alone');
is(state_of('f'), 'active|0|2|bad batch', 'and the one put aside, with its key');
$subscribe->('park_key');
refuse();

# The handler goes away.
$dbh->do('ALTER FUNCTION work.handle(coord.event) RENAME TO other');
publish('t.1', '1');
handle();
like(state_of('f'), qr/^blocked\|0\|0\|function work\.handle\(coord\.event\) does not exist/, 'a handler that is gone is told');
is(done(), '', 'and charges no attempt');
$dbh->do('ALTER FUNCTION work.other(coord.event) RENAME TO handle');
handle();
is(done() . state_of('f'), 't.1active|0|0|', 'until it is there again');

### Pause, seek

is(one($dbh, q{SELECT coord.subscription_pause('f', 'lunch')}), 1, 'paused');
is(one($dbh, q{SELECT coord.subscription_pause('f')}), 0, 'already');
my $first = publish('t.1', '1');
handle();
is(done() . state_of('f'), 'paused|0|0|', 'nothing is handled');
is(one($dbh, q{SELECT coord.subscription_resume('f')}), 1, 'resumed');
is(one($dbh, q{SELECT coord.subscription_resume('f')}), 0, 'already');
publish('t.2', '2');
handle();
is(done(), 't.1 t.2', 'goes on');
is(one($dbh, q{SELECT coord.subscription_seek('f', ?)}, $first), $first, 'seek');
handle();
is(done(), 't.2', 'back to a position');
clock('02:00:00');
publish('t.3', '3');
one($dbh, q{SELECT coord.subscription_seek('f', to_time => '2030-01-01 02:00:00+00')});
handle();
is(done(), 't.3', 'to a time');

### Consumers outside

$dbh->do(q{SELECT coord.unsubscribe('f')});
$dbh->do(q{SELECT coord.subscribe('c', '{c.*}', max_attempts => 3)});

# Events as "data:attempt", with their token before.
sub poll
{
  my ($session, $max, $lease) = @_;
  my $rows = $session->selectall_arrayref('SELECT token, data, attempt, pos FROM coord.subscription_poll(?, ?, ?)', undef,
    'c', $max || 100, $lease || '30 s');
  return (@$rows ? $rows->[0][0] : 0, join(' ', map { "$_->[1]:$_->[2]" } @$rows), [map { $_->[3] } @$rows]);
}
sub ack { my ($token, $upto) = @_; return one($dbh, q{SELECT coord.subscription_ack('c', ?, ?)}, $token, $upto) }

my ($token, $events, $positions) = poll($dbh);
is($events, '', 'nothing to poll');
publish("c.$_", $_) foreach (1 .. 5);
($token, $events, $positions) = poll($dbh, 3);
is($events, '1:1 2:1 3:1', 'some');
my ($token2, $events2, $positions2) = poll($dbh);
is($events2, '4:1 5:1', 'the others for another one');
is(ack($token, $positions->[0]), 0, 'only the first is done');
($token, $events) = poll($dbh);
is($events, '2:1 3:1', 'the others are delivered again, which is no failure');
is(ack($token), 1, 'done');
like(error_of($dbh, q{SELECT coord.subscription_ack('c', ?)}, $token), qr/^ZC001 token \d+ of subscription "c" is stale/, 'once');
is(one($dbh, q{SELECT coord.subscription_nack('c', ?, ARRAY[?::bigint], '10 s')}, $token2, $positions2->[0]), 1, 'not this one');
is(ack($token2), 1, 'the rest is done');
is((poll($dbh))[1], '', 'nothing before the time');
clock('02:00:10');
($token, $events) = poll($dbh);
is($events, '4:2', 'then again');
clock('02:00:39');
is((poll($dbh))[1], '', 'not while the lease lasts');
like(one($dbh, q{SELECT coord.subscription_extend('c', ?, '1 min')}, $token), qr/02:01:39/, 'extended');
clock('02:01:38');
is((poll($dbh))[1], '', 'for as long');
clock('02:01:40');
my ($token3, $events3) = poll($dbh);
is($events3, '4:3', 'then it is delivered again');
like(error_of($dbh, "SELECT coord.$_"), qr/^ZC001/, "$_: the old token is stale")
  foreach ("subscription_ack('c', $token)", "subscription_nack('c', $token)", "subscription_extend('c', $token)");
is(one($dbh, q{SELECT coord.subscription_nack('c', ?)}, $token3), 1, 'the last attempt has failed');
is(state_of('c'), 'active|1|0|given back by the consumer', 'parked');
is((poll($dbh))[1], '', 'and not delivered');
is(one($dbh, q{SELECT coord.parked_replay('c')}), 1, 'but when it is replayed');
($token, $events) = poll($dbh);
is($events, '4:1', 'with all its attempts');
is(ack($token), 1, 'done');

# Keys.
publish("c.$_->[0]", $_->[0], $_->[1]) foreach ([1, 'k'], [2, 'l'], [3, 'k'], [4], [5, 'm'], [6, 'k']);
($token, $events) = poll($dbh, 2);
is($events, '1:1 2:1', 'two keys');
($token2, $events2) = poll($other, 3);
is($events2, '4:1 5:1', 'another consumer gets what has other keys');
($token3, $events3) = poll($dbh, 9);
is($events3, '', 'and not what waits');
is(ack($token), 1, 'the key is free');
($token, $events) = poll($dbh, 1);
is($events, '3:1', 'for the next one');
is((poll($other, 9))[1], '', 'and for him alone');
is(ack($token), 1, 'and so on');
($token, $events) = poll($dbh, 9);
is($events, '6:1', 'one after the other');
ack($_) foreach ($token, $token2);
is(state_of('c'), 'active|0|0|', 'nothing is left');
publish("c.$_", $_, 'k') foreach (1 .. 3);
($token, $events, $positions) = poll($dbh);
is($events, '1:1 2:1 3:1', 'one consumer may have several of a key');
one($dbh, q{SELECT coord.subscription_nack('c', ?, retry_in => '10 s')}, $token);
clock('03:00:00');
($token, $events) = poll($dbh);
is($events, '1:2 2:2 3:2', 'given back they come again, in order');
one($dbh, q{SELECT coord.subscription_nack('c', ?, retry_in => '10 s')}, $token);
clock('03:00:10');
($token, $events) = poll($dbh, 1);
is($events, '1:3', 'the first');
one($dbh, q{SELECT coord.subscription_nack('c', ?)}, $token);
is((poll($dbh))[1], '', 'parked, it keeps the others');
one($dbh, q{SELECT coord.parked_drop('c', pos) FROM coord.parked});
($token, $events) = poll($dbh);
is($events, '2:3 3:3', 'until it is dropped');
ack($token);

# Undone with the transaction that polled.
publish('c.1', '1');
$other->do('BEGIN');
is((poll($other))[1], '1:1', 'polled');
$other->do('ROLLBACK');
($token, $events) = poll($dbh);
is($events, '1:1', 'and not, when the transaction is rolled back');
one($dbh, q{SELECT coord.subscription_seek('c', ?)}, $first);
like(error_of($dbh, q{SELECT coord.subscription_ack('c', ?)}, $token), qr/^ZC001/, 'seek makes tokens stale');
($token, $events) = poll($dbh);
is(scalar(split ' ', $events), 15, 'and delivers what comes after it');
ack($token);
like(error_of($dbh, q{SELECT coord.subscription_nack('c', 1, '{1}')}), qr/^ZC001/, 'an old token');
publish('c.1', '1');
($token, $events) = poll($dbh);
like(error_of($dbh, qq{SELECT coord.subscription_nack('c', $token, '{1}')}), qr/^22023 1 of the positions are not in hand/, 'a foreign position');
ack($token);

# Waiting.
is(one($dbh, q{CALL coord.await('subscription', 'c', '1 ms')}), 0, 'nothing comes');
$other->do(q{SELECT coord.publish('c.1', '1')}, { pg_async => DBD::Pg::PG_ASYNC() });
is(one($dbh, q{CALL coord.await('subscription', 'c', '1 min')}), 1, 'something comes');
$other->pg_result;
($token) = poll($dbh);
ack($token);
$dbh->do(q{SELECT * FROM coord.subscription_poll('c', timeout => '5 s')}, { pg_async => DBD::Pg::PG_ASYNC() });
eventually('somebody waits', $other, 1, q{SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'CoordEventWait'
    OR wait_event = 'Extension' AND query ~ 'subscription_poll' AND pid <> pg_backend_pid()});
my $begin = time;
one($other, q{SELECT coord.publish('c.9', '9')});
cmp_ok($dbh->pg_result, '>', 0, 'poll waits for it');
cmp_ok(time - $begin, '<', 4, 'no longer than it must');

### Who may

my $bob = session($node, 'postgres', user => 'bob');
my $ann = session($node, 'postgres', user => 'ann');
$ann->do(q{SET search_path = work});
$ann->do(q{SELECT coord.subscribe('ann', '{ann.*}', 'handle')});
$bob->do(q{SELECT coord.publish('ann.1', 'null')});
like(error_of($bob, "SELECT coord.$_"), qr/^42704 subscription "ann" does not exist/, "$_: not for others")
  foreach (q{unsubscribe('ann')}, q{subscription_pause('ann')}, q{subscription_resume('ann')}, q{subscription_seek('ann', 0)},
  q{parked_replay('ann')}, q{parked_drop('ann', 1)}, q{subscribe('ann', '{*}')}, q{subscription_poll('ann')},
  q{subscription_ack('ann', 1)}, q{subscription_nack('ann', 1)}, q{subscription_extend('ann', 1)});
like(error_of($ann, q{SELECT coord.subscription_poll('ann')}), qr/^55000 subscription "ann" has a handler/, 'nor polled');
is(one($bob, q{SELECT count(*) FROM coord.subscriptions}), 0, 'others do not see it');
is(one($bob, 'CALL coord.run_pending()'), 0, 'nor run it');
is(one($ann, 'CALL coord.run_pending()'), 1, 'she does');
is(done('note'), 'ann', 'it runs as her');
$bob->do(q{SELECT coord.publish('ann.2', 'null')});
handle();
is(done('note'), 'ann', 'also in a superuser\'s session');
$dbh->do(q{CREATE FUNCTION work.hostile(e coord.event) RETURNS void LANGUAGE plpgsql AS $$ BEGIN EXECUTE e.data #>> '{}'; END $$});
$ann->do(q{SELECT coord.subscribe('ann', '{ann.*}', 'hostile', max_attempts => 1)});
$bob->do(q{SELECT coord.publish('ann.3', ?)}, undef, qq{"$_"})
  foreach ('RESET ROLE', 'SET SESSION AUTHORIZATION bob', 'CREATE TEMP TABLE t ()', 'LISTEN x', 'DELETE FROM coord_internal.subscription');
handle();
is(one($dbh, q{SELECT count(*) FROM pg_class WHERE relname = 't'}), 0, 'a handler leaves nothing in the session');
cmp_ok(one($dbh, q{SELECT count(*) FROM coord.parked WHERE name = 'ann'}), '>=', 2, 'what it may not do fails');
is(one($dbh, q{SELECT count(*) FROM coord.subscriptions WHERE name IN ('c', 'ann')}), 2, 'and changes nothing');
$ann->do(q{SELECT coord.unsubscribe('ann')});

### Projections

$dbh->do($_) foreach (
  'CREATE TABLE work.balance (account text PRIMARY KEY, amount int)',
  q{CREATE FUNCTION work.book(e coord.event) RETURNS void LANGUAGE sql AS
    $$ INSERT INTO work.balance VALUES (e.stream, (e.data #>> '{}')::int)
       ON CONFLICT (account) DO UPDATE SET amount = balance.amount + EXCLUDED.amount $$},
  q{CREATE FUNCTION work.forget() RETURNS void LANGUAGE sql AS $$ DELETE FROM work.balance $$},
  q{SELECT coord.append('acc-1', 'deposited', '10'), coord.append('acc-2', 'deposited', '5'), coord.append('acc-1', 'deposited', '-3')},
  q{SELECT coord.projection_define('balances', '{deposited}', 'book', reset => 'forget')});
my $balances = q{SELECT string_agg(account || '=' || amount, ' ' ORDER BY account) FROM work.balance};
is(one($dbh, q{SELECT coord.projection_wait('balances', coord.last_position(), '1 ms')}), 0, 'a projection that lags');
handle();
is(one($dbh, $balances), 'acc-1=7 acc-2=5', 'reads from the beginning');
is(one($dbh, q{SELECT coord.projection_wait('balances', coord.last_position(), '1 ms')}), 1, 'has got there');
$dbh->do('UPDATE work.balance SET amount = 1000');
$dbh->do('BEGIN');
one($dbh, q{SELECT coord.projection_rebuild('balances')});
is(one($other, $balances), 'acc-1=1000 acc-2=1000', 'while it is reset others see the old tables');
$dbh->do('ROLLBACK');
is(handle(), 0, 'undone with the transaction');
one($dbh, q{SELECT coord.projection_rebuild('balances')});
is(one($dbh, $balances), undef, 'emptied');
handle();
is(one($dbh, $balances), 'acc-1=7 acc-2=5', 'and made anew');
is(join('|', map { $_ // '' } $dbh->selectrow_array('SELECT name, state, lag_events, last_error, handler, reset FROM coord.projections')),
  'balances|active|0||work.book|work.forget', 'coord.projections');
$dbh->do(q{SELECT coord.append('acc-1', 'deposited', '"much"'), coord.append('acc-1', 'deposited', '1')});
handle();
is(one($dbh, $balances), 'acc-1=7 acc-2=5', 'it stops at what fails');
like(one($dbh, 'SELECT last_error FROM coord.projections'), qr/invalid input syntax/, 'and says why');
is(one($dbh, q{SELECT coord.projection_wait('balances', coord.last_position(), '1 ms')}), 0, 'and has not got there');
$dbh->do('BEGIN');
one($dbh, q{SELECT coord.publish('x')});
like(error_of($dbh, q{SELECT coord.projection_wait('balances', coord.last_position())}), qr/^25001 cannot wait for position/, 'its own events');
$dbh->do('ROLLBACK');
$dbh->do('BEGIN ISOLATION LEVEL REPEATABLE READ');
like(error_of($dbh, q{SELECT coord.projection_wait('balances', 1)}), qr/^25001/, 'a snapshot that is kept');
$dbh->do('ROLLBACK');
$dbh->do(q{CREATE FUNCTION public.bobs(e jsonb) RETURNS void LANGUAGE sql AS ''});
like(error_of($bob, "SELECT coord.$_"), qr/^42704/, "$_: not for others")
  foreach (q{projection_rebuild('balances')}, q{projection_define('balances', '{*}', 'public.bobs')});
$dbh->do(q{CREATE FUNCTION work.forget_as() RETURNS void LANGUAGE sql AS $$ INSERT INTO work.done (note) SELECT current_user $$});
$ann->do(q{SELECT coord.projection_define('hers', '{never}', 'handle', reset => 'forget_as')});
one($dbh, q{SELECT coord.projection_rebuild('hers')});
is(done('note'), 'ann', 'reset runs as the owner');
like(error_of($dbh, "SELECT coord.$_->[0]"), qr/^$_->[1]/, $_->[0]) foreach (
  [q{projection_define('e', '{*}', NULL)}, '22004 handler must not be null'], [q{projection_define('e', '{*}', 'book', 'nosuch')}, '42883 function nosuch\(\) does not exist'],
  [q{projection_define('e', '{*}', 'book', 'pg_catalog.now')}, '42P13'], [q{projection_define('e', '{*}', 'nosuch')}, '42883'],
  [q{projection_rebuild('nosuch')}, '42704'], [q{projection_rebuild('c')}, '42704 projection "c" does not exist'],
  [q{projection_wait('nosuch', 1)}, '42704'], [q{projection_wait('hers', NULL)}, '22004'], [q{projection_wait('hers', 1, '-1 s')}, '22023']);
$dbh->do(q{SELECT coord.projection_define('plain', '{*}', 'book')});
like(error_of($dbh, q{SELECT coord.projection_rebuild('plain')}), qr/^55000/, 'without reset');
one($dbh, 'SELECT coord.unsubscribe(?)', $_) foreach ('plain', 'hers', 'balances');
is(one($dbh, 'SELECT count(*) FROM coord_internal.projection'), 0, 'unsubscribe ends it');

### Bad input

my @errors = (
  [q{subscribe(NULL)}, '22004 name must not be null'], [q{subscribe('')}, '22023'], [q{subscribe(repeat('x', 201))}, '42622'],
  [q{subscribe('e', NULL)}, '22004 types must not be null'], [q{subscribe('e', '{a*b}')}, '22023 invalid pattern "a\*b" in types'],
  [q{subscribe('e', '{NULL}')}, '22004 types must not contain null'], [q{subscribe('e', streams => '{**}')}, '22023 invalid pattern "\*\*" in streams'],
  [q{subscribe('e', handler => 'nosuch')}, '42883 function nosuch\(coord.event\) does not exist'],
  [q{subscribe('e', handler => 'handle_many')}, '42883'], [q{subscribe('e', handler => 'handle', mode => 'batch')}, '42883 function handle\(coord.event\[\]\)'],
  [q{subscribe('e', handler => 'pg_catalog.to_jsonb')}, '42883'], [q{subscribe('e', handler => 'a.b.c.d')}, '4'],
  [q{subscribe('e', handler => 'pg_catalog.jsonb_typeof')}, '42P13 pg_catalog.jsonb_typeof cannot be a handler'],
  [q{subscribe('e', emits => 'x')}, '22023 emits is for subscriptions with a handler'],
  [q{subscribe('e', handler => 'handle', emits => 'x*')}, '22023 invalid event type'],
  [q{subscribe('e', start_from => 'end')}, '22023 invalid start_from "end"'], [q{subscribe('e', from_position => -1)}, '22023'],
  [q{subscribe('e', mode => 'all')}, '22023 invalid mode'], [q{subscribe('e', batch_size => 0)}, '22023 batch_size must be from 1 to 10000'],
  [q{subscribe('e', parallel => 0)}, '22023'], [q{subscribe('e', max_attempts => 0)}, '22023'], [q{subscribe('e', on_error => 'skip')}, '22023 invalid on_error'],
  [q{subscribe('e', max_attempts => NULL)}, '22004'], [q{unsubscribe(NULL)}, '22004'], [q{subscription_pause('nosuch')}, '42704'],
  [q{subscription_seek('c')}, '22023 either'], [q{subscription_seek('c', 1, now())}, '22023 either'], [q{subscription_seek('c', -1)}, '22023'],
  [q{subscription_poll('nosuch')}, '42704'], [q{subscription_poll('c', 0)}, '22023 max_events must be from 1 to 10000'],
  [q{subscription_poll('c', NULL)}, '22004'], [q{subscription_poll('c', lease => '0')}, '22023 lease must be positive'],
  [q{subscription_poll('c', timeout => '-1 s')}, '22023'], [q{subscription_ack('c', NULL)}, '22004'], [q{subscription_ack('c', 0)}, 'ZC001'],
  [q{subscription_nack('c', 1, '{NULL}')}, '22004'], [q{subscription_nack('c', 1, retry_in => '-1 s')}, '22023'], [q{parked_drop('c', NULL)}, '22004']);
like(error_of($dbh, "SELECT coord.$_->[0]"), qr/^$_->[1]/, $_->[0]) foreach @errors;
is(one($dbh, q{SELECT count(*) FROM coord.subscriptions WHERE name = 'e'}), 0, 'errors leave nothing');

done_testing();
