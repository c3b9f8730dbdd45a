# What waits outside the engine (tasks, leases, delays, signals, pauses, sagas in
# sagas, items) and the limits of queues survive a crash and a promotion, and go on by
# themselves; in a copy they wait for coord.resume().

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use CoordTasks;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

sub install
{
  my ($dbh) = @_;
  install_sagas($dbh);
  my %sagas = (
    hold => q{coord.step('t', queue => 'hold')},
    short => q{coord.step('t', queue => 'short')},
    delay => q{coord.step('t', queue => 'delay')},
    jump => q{coord.step('t', queue => 'jump')},
    full => q{coord.step('t', queue => 'full')},
    rate => q{coord.step('t', queue => 'rate')},
    stop => q{coord.step('t', queue => 'stop')},
    patience => q{coord.step_signal('s', 'never', timeout => '3 s', on_timeout => 'continue'), coord.step('n', 'public.note')},
    impatience => q{coord.step('b', 'public.note', 'public.undo'), coord.step_signal('s', 'never', timeout => '3 s')},
    answer => q{coord.step_signal('s', 'go'), coord.step('n', 'public.note')},
    rest => q{coord.step_sleep('s', '3 s'), coord.step('n', 'public.note')},
    child => q{coord.step_sleep('s', '3 s'), coord.step('t', queue => 'child'), coord.step('n', 'public.note')},
    parent => q{coord.step_saga('c', 'child', input => '$.input'), coord.step('n', 'public.note')},
    items => q{coord.step('i', queue => 'items', for_each => '$.input[*]', max_parallel => 4), coord.step('n', 'public.note')},
    local => q{coord.step('i', 'public.gate_item', for_each => '$.input.items[*]', max_parallel => 2), coord.step('n', 'public.note')});
  $dbh->do(q{CREATE FUNCTION gate_item(doc jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
    BEGIN
      INSERT INTO public.effect (saga, step, phase, input) VALUES ((doc ->> 'saga_id')::bigint, 'item ' || (doc ->> 'item'),
        'action', doc -> 'attempt');
      IF doc ->> 'index' >= '2' THEN
        PERFORM pg_advisory_xact_lock_shared(77);
      END IF;
      RETURN doc -> 'item';
    END $$});
  foreach my $name ('child', grep { $_ ne 'child' } sort keys %sagas)
  {
    one($dbh, "SELECT coord.saga_define('$name', ARRAY[$sagas{$name}])");
  }
  return;
}

# Everything in the middle of something; returns what is to be compared.
sub begin_all
{
  my ($node, $database) = @_;
  my $dbh = session($node, $database);
  my %id;
  my $start = sub {
    my ($name, $input) = @_;
    return $id{$name} = one($dbh, q{SELECT coord.saga_start(?, ?)}, $name, $input // '{}');
  };
  my %task;

  foreach my $name (qw(hold short delay jump))
  {
    $start->($name);
    $task{$name} = claim_one($dbh, $name, worker => 'before', lease => $name eq 'short' ? '3 s' : '1 hour');
  }
  one($dbh, q{SELECT coord.task_fail(?, ?, 'not yet', retry_in => '3 s')}, @{ $task{delay} }{qw(task_id token)});

  # A claim by a clock that was ahead, and is not any more.
  one($dbh, q{SELECT coord.task_release(?, ?)}, @{ $task{jump} }{qw(task_id token)});
  $dbh->do(q{SET coord.test_now = '2100-01-01'});
  ($task{jump}) = claim($dbh, 'jump');
  $dbh->do(q{RESET coord.test_now});
  one($dbh, q{SELECT coord.task_release(?, ?)}, @{ $task{jump} }{qw(task_id token)});

  one($dbh, q{SELECT coord.queue_configure('full', max_running => 2)});
  one($dbh, q{SELECT coord.queue_configure('rate', rate_limit => 0.01)});
  one($dbh, q{SELECT coord.queue_configure('stop', paused => true)});
  foreach my $name (qw(full rate stop))
  {
    my @ids = map { $start->($name) } 1 .. 4;
    $id{$name} = \@ids;
    eventually("there are tasks of $name", $dbh, 4, q{SELECT ready FROM coord.queues WHERE queue = ?}, $name);
  }
  $task{full} = [ claim($dbh, 'full', max_tasks => 10, lease => '1 hour') ];
  is(scalar(@{ $task{full} }), 2, 'max_running is respected');
  cmp_ok(scalar(claim($dbh, 'rate', max_tasks => 10, lease => '1 hour')), '<=', 1, 'the rate limit is, too');
  is(scalar(claim($dbh, 'stop', max_tasks => 10)), 0, 'and a pause');

  $start->('items', '[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]');
  foreach my $n (0 .. 4)
  {
    my $task = claim_one($dbh, 'items', lease => '1 hour');
    complete($dbh, $task, $task->{item} * 10);
  }
  $task{items} = [ claim($dbh, 'items', max_tasks => 2, lease => '1 hour') ];

  # Two local items are done, the others wait for a lock that ends with this session.
  $dbh->do('SELECT pg_advisory_lock(77)');
  $start->('local', '{"items": [0, 1, 2, 3, 4]}');
  eventually('local items are half done', $dbh, 2, q{SELECT count(*) FROM coord.saga_steps
    WHERE saga_id = ? AND item IS NOT NULL AND status = 'completed'}, $id{local});
  eventually('others are in the middle', $dbh, 2, q{SELECT count(*) FROM pg_stat_activity
    WHERE datname = ? AND backend_type = 'coord worker' AND wait_event = 'advisory'}, $database);

  $start->($_) foreach qw(patience impatience answer rest parent);
  eventually('a saga waits for another', $dbh, 'running', q{SELECT s.status FROM coord.saga_steps s
    JOIN coord.sagas g ON g.id = s.saga_id WHERE g.name = 'child' AND step = 's'});
  eventually('another for a signal', $dbh, 'running', q{SELECT status FROM coord.saga_steps WHERE saga_id = ? AND step = 's'},
    $id{answer});

  # Come, but not taken in: whoever is told finds the saga locked.
  my $locker = session($node, $database);
  $locker->begin_work;
  $locker->do('SELECT FROM coord_internal.saga WHERE id = ? FOR UPDATE', undef, $id{answer});
  one($dbh, q{SELECT coord.saga_signal(?, 'go', '{"by": "signal"}')}, $id{answer});
  is(one($dbh, q{SELECT count(*) FROM coord_internal.saga_inbox WHERE saga_id = ?}, $id{answer}), 1,
    'a signal has come that nobody knows of yet');
  return (\%id, \%task, $dbh, $locker);
}

# Nothing is driven here: workers in the background and outside do it.
sub all_goes_on
{
  my ($node, $database, $id, $task, $what) = @_;
  my $dbh = session($node, $database);
  my $status = sub {
    my ($name, $status) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    eventually("$what: $name is $status", $dbh, $status, q{SELECT coord.saga_status(?)}, $id->{$name});
  };
  my $effects = sub {
    return one($dbh, q{SELECT coalesce(string_agg(CASE phase WHEN 'compensation' THEN 'undo ' ELSE '' END || step, ','
      ORDER BY step, id), '') FROM effect WHERE saga = ?}, $id->{$_[0]});
  };

  # Limits.
  is(scalar(claim($dbh, 'full', max_tasks => 10)), 0, "$what: max_running counts those that were claimed before");
  cmp_ok(scalar(claim($dbh, 'rate', max_tasks => 10)), '<=', 1, "$what: a rate limit allows no burst");
  is(scalar(claim($dbh, 'rate', max_tasks => 10)), 0, "$what: and stays");
  is(scalar(claim($dbh, 'stop', max_tasks => 10)), 0, "$what: a paused queue is paused");
  is(one($dbh, q{SELECT string_agg(concat_ws(' ', queue, paused, max_running, rate_limit), ',' ORDER BY queue) FROM coord.queues
      WHERE queue IN ('full', 'rate', 'stop')}), 'full f 2,rate f 0.01,stop t', "$what: coord.queues says so");
  is(one($dbh, q{SELECT string_agg(name, ',') FROM coord.stuck WHERE kind = 'queue'}), 'stop',
    "$what: coord.stuck has the paused queue");
  complete($dbh, $task->{full}[0], 'null');
  my @freed = claim($dbh, 'full', max_tasks => 10);
  is(scalar(@freed), 1, "$what: one that is completed makes room for one");

  # Leases.
  is(one($dbh, q{SELECT concat_ws(' ', status, attempt, worker) FROM coord.tasks WHERE saga_id = ?}, $id->{hold}),
    'running 1 before', "$what: a lease is still held");
  is(scalar(claim($dbh, 'hold')), 0, "$what: and its task given to nobody else");
  is(complete($dbh, $task->{hold}, '{"by": "before"}'), 1, "$what: its token is good");
  $status->('hold', 'completed');
  my $again = claim_one($dbh, 'short', worker => 'after');
  is("@$again{qw(task_id attempt)}", "$task->{short}{task_id} 2", "$what: a lease that ends leads to another delivery");
  cmp_ok($again->{token}, '>', $task->{short}{token}, "$what: with a greater token");
  like(error_of($dbh, q{SELECT coord.task_complete(?, ?)}, @{ $task->{short} }{qw(task_id token)}), qr/^ZC001 /,
    "$what: the other one is not good any more");
  complete($dbh, $again, 'null');
  $status->('short', 'completed');
  $again = claim_one($dbh, 'delay');
  is("@$again{qw(task_id attempt)}", "$task->{delay}{task_id} 2", "$what: a delayed task comes");
  is(one($dbh, q{SELECT claimed_at >= available_at AND available_at >= created_at + '3 s' FROM coord_internal.task WHERE id = ?},
    $again->{task_id}), 1, "$what: when its time has come");
  complete($dbh, $again, 'null');
  $status->('delay', 'completed');
  $again = claim_one($dbh, 'jump');
  cmp_ok($again->{token}, '>', $task->{jump}{token}, "$what: tokens grow though the clock was set back");
  complete($dbh, $again, 'null');
  $status->('jump', 'completed');

  # Time, signals, other sagas.
  $status->('patience', 'completed');
  $status->('impatience', 'compensated');
  is($effects->('impatience'), 'b,undo b', "$what: a signal that did not come in time turns the saga back");
  $status->('answer', 'completed');
  is(one($dbh, q{SELECT coord.saga_output(?)}, $id->{answer}), '{"n": "n", "s": {"by": "signal"}}', "$what: by the signal");
  $status->('rest', 'completed');
  is($effects->($_), 'n', "$what: the step after it is done once, $_") foreach qw(patience answer rest);
  is(one($dbh, q{SELECT bool_and(finished_at >= started_at + '3 s') FROM coord.saga_steps WHERE saga_id = ANY (?) AND step = 's'},
    [ @$id{qw(patience rest)} ]), 1, "$what: none too early");
  complete($dbh, claim_one($dbh, 'child'), '{"of": "child"}');
  $status->('parent', 'completed');
  is(one($dbh, q{SELECT coord.saga_output(?)}, $id->{parent}), '{"c": {"n": "n", "s": null, "t": {"of": "child"}}, "n": "n"}',
    "$what: with the output of the other saga");

  # Items.
  complete($dbh, $_, $_->{item} * 10) foreach @{ $task->{items} };
  foreach (1 .. 3)
  {
    my $item = claim_one($dbh, 'items');
    complete($dbh, $item, $item->{item} * 10);
  }
  $status->('items', 'completed');
  is(one($dbh, q{SELECT coord.saga_output(?)}, $id->{items}), '{"i": [0, 10, 20, 30, 40, 50, 60, 70, 80, 90], "n": "n"}',
    "$what: results of items from before and after, in order");
  $status->('local', 'completed');
  is($effects->('local'), 'item 0,item 1,item 2,item 3,item 4,n', "$what: local items are done once each");
  is(one($dbh, q{SELECT coord.saga_output(?)}, $id->{local}), '{"i": [0, 1, 2, 3, 4], "n": "n"}', "$what: with their results");

  # The rest of those in limited queues.
  one($dbh, q{SELECT coord.queue_configure('rate', rate_limit => 'infinity')});
  one($dbh, q{SELECT coord.queue_configure('stop', paused => false)});
  complete($dbh, $_, 'null') foreach $task->{full}[1], @freed;
  complete($dbh, claim_one($dbh, 'full'), 'null');
  complete($dbh, claim_one($dbh, 'stop'), 'null') foreach 1 .. 4;
  one($dbh, q{SELECT coord.task_revoke(task_id) FROM coord.tasks WHERE queue = 'rate' AND status = 'running'});
  one($dbh, q{SELECT coord.task_revoke(task_id) FROM coord.tasks WHERE queue = 'rate' AND status = 'running'});
  complete($dbh, claim_one($dbh, 'rate'), 'null') foreach 1 .. 4;
  eventually("$what: all sagas are finished", $dbh, 0, q{SELECT count(*) FROM coord.sagas WHERE finished_at IS NULL});
  is(one($dbh, q{SELECT string_agg(s.status, ',' ORDER BY s.status) FROM coord.sagas s
      WHERE s.status NOT IN ('completed', 'compensated')}), undef, "$what: and well");
  is(one($dbh, 'SELECT count(*) FROM coord.stuck'), 0, "$what: nothing is stuck");
  is(one($dbh, "SELECT count(*) FROM coord_internal.$_"), 0, "$what: coord_internal.$_ is empty") foreach qw(task saga_signal saga);
  # What came for a saga just when it ended goes with the next housekeeping, which a new worker does first.
  one($dbh, q{SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE backend_type = 'coord worker'});
  $dbh->do('SELECT coord.start_worker()');
  eventually("$what: coord_internal.saga_inbox is empty", $dbh, 0, 'SELECT count(*) FROM coord_internal.saga_inbox');
  $dbh->disconnect;
  return;
}

### A crash, and a standby that is promoted

my $primary = PostgreSQL::Test::Cluster->new('primary');
$primary->init(allows_streaming => 1);
configure($primary, shared_preload_libraries => 'coord', 'coord.worker_idle_timeout' => '1s', 'coord.max_function_wait' => '20s');
$primary->start;
my $admin = session($primary, 'postgres');
# For the copies below; first of all, so that their oids are those of others elsewhere.
$admin->do("CREATE ROLE $_ LOGIN") foreach qw(alice bob carol);
$admin->do('CREATE DATABASE app');
my $app = session($primary, 'app');
install($app);
$_->disconnect foreach $app, $admin;

{
  my ($id, $task, @sessions) = begin_all($primary, 'app');
  $primary->stop('immediate');
  $primary->start;
  all_goes_on($primary, 'app', $id, $task, 'after a crash');
  eval { $_->disconnect } foreach @sessions;
}

{
  $primary->backup('base');
  my $standby = PostgreSQL::Test::Cluster->new('standby');
  $standby->init_from_backup($primary, 'base', has_streaming => 1);
  $standby->start;
  my ($id, $task, @sessions) = begin_all($primary, 'app');
  $primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));
  my $reader = session($standby, 'app');
  is(one($reader, q{SELECT concat_ws(' ', status, worker) FROM coord.tasks WHERE saga_id = ?}, $id->{hold}), 'running before',
    'coord.tasks can be read on a standby');
  is(one($reader, q{SELECT count(*) FROM coord.queues}), 9, 'and coord.queues');
  foreach my $verb (q{SELECT * FROM coord.task_claim('hold')}, q{SELECT * FROM coord.task_claim('hold', timeout => '10 s')},
    qq{SELECT coord.task_complete($task->{hold}{task_id}, $task->{hold}{token})},
    qq{SELECT coord.task_complete_many(ARRAY[$task->{hold}{task_id}], ARRAY[$task->{hold}{token}])},
    qq{SELECT coord.task_fail($task->{hold}{task_id}, $task->{hold}{token}, 'no')},
    qq{SELECT coord.task_extend($task->{hold}{task_id}, $task->{hold}{token})},
    qq{SELECT coord.task_release($task->{hold}{task_id}, $task->{hold}{token})},
    qq{SELECT coord.task_revoke($task->{hold}{task_id})}, q{SELECT coord.queue_configure('hold', max_running => 1)},
    qq{SELECT coord.saga_signal($id->{answer}, 'go')}, q{CALL coord.await('queue', 'hold', '10 s')})
  {
    like(error_of($reader, $verb), qr/^(25006 cannot |25006 .*recovery)/, "$verb is refused on a standby");
  }
  $reader->disconnect;
  $primary->stop('immediate');
  $standby->promote;
  all_goes_on($standby, 'app', $id, $task, 'after promotion');
  eval { $_->disconnect } foreach @sessions;
  $standby->stop;
  $primary->start;
}

### Copies

# A second role may claim what belongs to the first.
my $node = $primary;
$admin = session($node, 'postgres');
$admin->do('CREATE DATABASE original');
my $dbh = session($node, 'original');
install($dbh);
$dbh->do('GRANT coord_user TO alice, bob, carol');
one($dbh, q{SELECT coord.grant_use('saga', ?, 'alice')}, $_) foreach qw(hold short delay answer items);
my $alice = session($node, 'original', user => 'alice');
one($dbh, q{SELECT coord.saga_start('hold')});
foreach my $queue (qw(hold short delay items))
{
  # It is alice's, too, as soon as a saga of hers uses it.
  my $saga = one($alice, q{SELECT coord.saga_start(?, '[0]')}, $queue);
  wait_until($alice, 1, q{SELECT count(*) FROM coord.queues WHERE queue = ?}, $queue);
  complete($alice, claim_one($alice, $queue), 'null');
  wait_until($dbh, 'completed', q{SELECT coord.saga_status(?)}, $saga);
  one($alice, q{SELECT coord.grant_use('queue', ?, 'bob')}, $queue);
}
my $mine = claim_one($dbh, 'hold');
my $bob = session($node, 'original', user => 'bob');
my %id = map { $_ => one($alice, q{SELECT coord.saga_start(?, '[0, 1, 2, 3, 4]')}, $_) } qw(hold short delay answer items);
my %task = map { $_ => claim_one($bob, $_, lease => $_ eq 'short' ? '10 ms' : '1 hour') } qw(hold short delay);
one($bob, q{SELECT coord.task_fail(?, ?, 'not yet', retry_in => '1 s')}, @{ $task{delay} }{qw(task_id token)});
foreach my $n (0 .. 2)
{
  my $item = claim_one($bob, 'items', lease => '1 hour');
  complete($bob, $item, $item->{item}) if $n < 2;
  $task{items} = $item;
}
wait_until($dbh, 'running', q{SELECT status FROM coord.saga_steps WHERE saga_id = ? AND step = 's'}, $id{answer});
wait_until($dbh, 0, q{SELECT count(*) FROM coord_internal.saga_inbox});
one($dbh, q{SELECT coord.pause('to be copied')});
one($dbh, q{CALL coord.drain('20 s')});
# While it is paused things come in, and are kept.
my $early = one($alice, q{SELECT coord.saga_start('answer')});
one($alice, q{SELECT coord.saga_signal(?, 'go', '"early"')}, $early);
one($alice, q{SELECT coord.saga_signal(?, 'go', '"late"')}, $id{answer});
is(complete($bob, $task{hold}, '{"by": "bob"}'), 1, 'a task that was claimed before a pause can be completed');
is(one($dbh, q{SELECT count(*) >= 3 FROM coord_internal.saga_inbox}), 1, 'there are inboxes');
is(one($dbh, q{SELECT count(*) FROM coord_internal.saga_signal}), 2, 'and signals');
my $tasks = q{SELECT string_agg(t::text, E'\n' ORDER BY t::text) FROM (SELECT id, saga_id, ordinal, item, phase, queue, status, attempt,
  claims, token, worker, available_at, lease_expires_at, item_value, result, error FROM coord_internal.task) t};
my $before = one($dbh, $tasks);
cmp_ok(length $before, '>', 500, 'and tasks');
my $dump = PostgreSQL::Test::Utils::tempdir . '/original.dump';
$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, $node->connstr('original') ], 'pg_dump');
$_->disconnect foreach $alice, $bob, $dbh;
$admin->do('CREATE DATABASE copy TEMPLATE original');

# Whoever it is, nothing is claimed in a copy; then all goes on.
sub copy_goes_on
{
  my ($node, $database, $what, %options) = @_;
  my $dbh = session($node, $database);
  my $bob = session($node, $database, user => 'bob');
  # Whose oid is that of alice in the original, if she is not there; or nobody.
  my $stranger = session($node, $database, user => $options{foreign} ? 'mallory' : 'carol');
  my $nothing_for_strangers = sub {
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    like(error_of($stranger, q{SELECT * FROM coord.task_claim('hold')}), qr/^42704 /, "$what: a stranger sees no queue");
    is(one($stranger, q{SELECT count(*) FROM coord.queues}) + one($stranger, q{SELECT count(*) FROM coord.tasks}), 0,
      "$what: nor tasks");
  };
  $nothing_for_strangers->();
  unless ($options{original})
  {
    is(one($dbh, $tasks), $before, "$what: tasks are what they were");
    is(one($dbh, q{SELECT count(*) FROM coord.stuck WHERE kind = 'engine' AND waits_for ~ 'copy'}), 1, "$what is a copy");
    foreach my $queue (qw(hold short delay items))
    {
      is(scalar(claim($dbh, $queue, max_tasks => 10)), 0, "$what: nothing can be claimed from $queue");
    }
    is(scalar(claim($dbh, 'short', timeout => '200 ms')), 0, "$what: by waiting neither");
    is(one($dbh, q{CALL coord.await('queue', 'short', '100 ms')}), 0, "$what: and nothing is announced");
    if ($options{foreign})
    {
      like(error_of($bob, q{SELECT * FROM coord.task_claim('short')}), qr/^42704 /, "$what: bob is nobody yet");
    }
    else
    {
      is(scalar(claim($bob, 'short', max_tasks => 10)), 0, "$what: nor by bob");
    }
    is(one($dbh, 'CALL coord.run_pending()'), 0, "$what: run_pending does nothing");
    is(one($dbh, $tasks), $before, "$what: nothing has changed");
  }
  one($dbh, q{SELECT coord.resume()});
  my $status = sub {
    my ($name, $id) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    eventually("$what: $name goes on after coord.resume()", $dbh, 'completed', q{SELECT coord.saga_status(?)}, $id);
  };
  $status->('one with a signal that came early', $early);
  $status->('one with a signal', $id{answer});
  is(one($dbh, q{SELECT coord.saga_output(?)}, $id{answer}), '{"n": "n", "s": "late"}', "$what: by that signal");
  $status->('one whose task is completed', $id{hold});
  foreach my $queue (qw(short delay))
  {
    my $task = claim_one($bob, $queue);
    is("@$task{qw(saga_id attempt)}", "$id{$queue} 2", "$what: bob gets the task of $queue again");
    cmp_ok($task->{token}, '>', $task{$queue}{token}, "$what: with a greater token");
    complete($bob, $task, 'null');
    $status->($queue, $id{$queue});
  }
  one($dbh, q{SELECT coord.task_revoke(?)}, $task{items}{task_id});
  foreach (1 .. 3)
  {
    my $item = claim_one($bob, 'items');
    complete($bob, $item, $item->{item});
  }
  $status->('items', $id{items});
  is(one($dbh, q{SELECT coord.saga_output(?)}, $id{items}), '{"i": [0, 1, 2, 3, 4], "n": "n"}', "$what: with all results");
  $nothing_for_strangers->();
  is(complete($dbh, $mine, 'null'), 1, "$what: a lease of the superuser's is still good");
  eventually("$what: all sagas are finished", $dbh, 0, q{SELECT count(*) FROM coord.sagas WHERE finished_at IS NULL});
  is(one($dbh, "SELECT count(*) FROM coord_internal.$_"), 0, "$what: coord_internal.$_ is empty")
    foreach qw(task saga_inbox saga_signal);
  $_->disconnect foreach $stranger, $bob, $dbh;
  return;
}

copy_goes_on($node, 'copy', 'a copy by template');
{
  my $other = new_cluster('other', 'coord.worker_idle_timeout' => '1s', 'coord.max_function_wait' => '20s');
  my $there = session($other, 'postgres');
  # Oids are counted from the same start: alice's becomes mallory's, bob's alice's.
  $there->do("CREATE ROLE $_ LOGIN") foreach qw(mallory alice bob);
  is(one($there, q{SELECT oid FROM pg_roles WHERE rolname = 'mallory'}),
    one($admin, q{SELECT oid FROM pg_roles WHERE rolname = 'alice'}), 'another role has the oid of alice in another cluster');
  $there->do('CREATE DATABASE app');
  $other->command_ok([ 'pg_restore', '--exit-on-error', '--no-owner', '--no-acl', '-d', $other->connstr('app'), $dump ],
    'pg_restore into another cluster');
  my $copy = session($other, 'app');
  $copy->do('GRANT SELECT, INSERT ON effect TO PUBLIC');
  $copy->do('GRANT coord_user TO alice, bob, mallory');
  $_->disconnect foreach $copy, $there;
  copy_goes_on($other, 'app', 'a dump in another cluster', foreign => 1);
  $other->stop;
}
copy_goes_on($node, 'original', 'the original', original => 1);

unlike(slurp_file($_->logfile), qr/PANIC|TRAP:|terminated by signal/, 'no crashes but ours') foreach $node;
$admin->disconnect;
$node->stop;
done_testing();
