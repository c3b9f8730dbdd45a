# Workers outside the database: killed in the middle, too late, waiting, listening,
# in prepared transactions, behind PgBouncer.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use CoordTasks;
use DBD::Pg;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

# Longer than anything here may take that needs no timer, shorter than the time
# after which waiters look again and than the safety scan.
my $promptly = 4;

my $node = new_cluster('tasks', 'coord.worker_idle_timeout' => '200ms', 'coord.max_function_wait' => '20s',
  max_prepared_transactions => 10);
my $admin = session($node, 'postgres');
$admin->do("CREATE DATABASE $_") foreach qw(app bank);
my $app = session($node, 'app');
install_sagas($app);
my $bank = session($node, 'bank');
$bank->do('CREATE TABLE charge (key text PRIMARY KEY, worker text)');
$bank->do('CREATE TABLE attempt (key text, attempt int, worker text)');
$app->do('CREATE TABLE receipt (key text, worker text)');

sub define
{
  my ($name, $steps) = @_;
  one($app, "SELECT coord.saga_define('$name', ARRAY[$steps])");
  return;
}

sub start
{
  my ($name, $input) = @_;
  return one($app, q{SELECT coord.saga_start(?, ?)}, $name, $input // '{}');
}

sub status_becomes
{
  my ($name, $id, $status) = @_;
  local $Test::Builder::Level = $Test::Builder::Level + 1;
  return eventually($name, $app, $status, q{SELECT coord.saga_status(?)}, $id);
}

sub output_of
{
  my ($id) = @_;
  return one($app, q{SELECT coord.saga_output(?)}, $id);
}

# "status attempt" of the task of a saga, undef: it has none that is unfinished
sub task_is
{
  my ($id) = @_;
  return one($app, q{SELECT status || ' ' || attempt FROM coord.tasks WHERE saga_id = ?}, $id);
}

# Until the statement of this session sleeps; one that waits and does not is a fault.
sub wait_for_sleep
{
  my ($dbh) = @_;
  wait_until($admin, 'Extension', q{SELECT wait_event_type FROM pg_stat_activity WHERE pid = ? AND state = 'active'},
    $dbh->{pg_pid}) eq 'Extension' or die 'it does not sleep';
  return;
}

sub wait_for_lock
{
  my ($dbh) = @_;
  return wait_until($admin, 'Lock', q{SELECT wait_event_type FROM pg_stat_activity WHERE pid = ?}, $dbh->{pg_pid});
}

sub begin_statement
{
  my ($dbh, $sql) = @_;
  $dbh->do($sql, { pg_async => DBD::Pg::PG_ASYNC() });
  return;
}

# "no error" or that of the statement begun
sub end_statement
{
  my ($dbh) = @_;
  return 'no error' if eval { $dbh->pg_result; 1 };
  return $dbh->state;
}

# What the bank has been asked, and what it has done.
sub charges
{
  my ($key) = @_;
  return join '; ', map { one($bank, $_, $key) // '' } q{SELECT string_agg(worker || ' ' || attempt, ',' ORDER BY attempt)
    FROM attempt WHERE key = ?}, q{SELECT string_agg(worker, ',') FROM charge WHERE key = ?};
}

# The side effect, in another database.
sub charge
{
  my ($to, $task, $worker) = @_;
  $to->do('INSERT INTO attempt VALUES (?, ?, ?)', undef, @$task{qw(idempotency_key attempt)}, $worker);
  return $to->do('INSERT INTO charge VALUES (?, ?) ON CONFLICT DO NOTHING', undef, $task->{idempotency_key}, $worker);
}

# A worker in a process of its own that claims, charges, does $then and says its
# task's id and token; it is then where the test wants it.
sub worker
{
  my ($name, $lease, $then) = @_;
  my $worker = outside
  {
    my ($say) = @_;
    my $from = session($node, 'app');
    my $to = session($node, 'bank');
    my $task = claim_one($from, 'payments', worker => $name, lease => $lease);
    charge($to, $task, $name);
    $then->($from, $task) if $then;
    $say->(@$task{qw(task_id token)});
  };
  @$worker{qw(task_id token)} = split / /, heard($worker);
  return $worker;
}

define('pay', q{coord.step('charge', queue => 'payments', compensation => 'refund', retry_delay => '10 ms')});
my @session = map { session($node, 'app') } 1 .. 4;
my ($left, $right) = @session;

### kill -9 between the side effect and task_complete()

{
  my $id = start('pay');
  my $key = "$id/charge";
  my $worker = worker('first', '1 s');
  is(charges($key), 'first 1; first', 'a worker has charged');
  is(one($app, q{SELECT concat_ws(' ', task_id, status, attempt, worker, queue, step) FROM coord.tasks WHERE saga_id = ?}, $id),
    "$worker->{task_id} running 1 first payments charge", 'and coord.tasks shows that it is at work');
  kill_outside($worker);
  my $task = claim_one($left, 'payments', worker => 'second');
  is("@$task{qw(task_id saga_id attempt idempotency_key null_compensation)}", "$worker->{task_id} $id 2 $key 0",
    'after kill -9 the task is delivered again, under the same key');
  cmp_ok($task->{token}, '>', $worker->{token}, 'with a greater token');
  cmp_ok(charge($bank, $task, 'second'), '==', 0, 'the key says that it is done');
  like(error_of($right, q{SELECT coord.task_complete(?, ?)}, @$worker{qw(task_id token)}), qr/^ZC001 /,
    'who has the dead one\'s token is refused');
  is(complete($left, $task, '{"by": "second"}'), 1, 'the second one completes it');
  status_becomes('the saga is completed', $id, 'completed');
  is(charges($key), 'first 1,second 2; first', 'one effect, two attempts');
  is(output_of($id), '{"charge": {"by": "second"}}', 'and one result');
  is(complete($left, $task, '{"by": "again"}'), 0, 'to complete it again is harmless');
}

# In the caller's own transaction, killed before COMMIT: neither.
{
  my $id = start('pay');
  my $receipt = sub {
    my ($dbh, $task) = @_;
    $dbh->begin_work;
    $dbh->do('INSERT INTO receipt VALUES (?, ?)', undef, $task->{idempotency_key}, 'killed');
    complete($dbh, $task, '{"by": "killed"}') or die;
  };
  my $worker = worker('killed', '1 s', $receipt);
  is(task_is($id), 'running 1', 'an uncommitted completion is not seen');
  kill_outside($worker);
  my $task = claim_one($left, 'payments');
  is("$task->{saga_id} $task->{attempt}", "$id 2", 'a worker that is killed before COMMIT has completed nothing');
  is(one($app, 'SELECT count(*) FROM receipt'), 0, 'nor written anything');
  $left->begin_work;
  $left->do('INSERT INTO receipt VALUES (?, ?)', undef, $task->{idempotency_key}, 'second');
  is(complete($left, $task, '{"by": "second"}'), 1, 'completed together with its own writes');
  $left->commit;
  status_becomes('the saga is completed', $id, 'completed');
  is(one($app, q{SELECT string_agg(key || ' ' || worker, ',') FROM receipt}), "$id/charge second", 'and so are they, once');
}

### Leases that expire

{
  my $id = start('pay');
  my $task = claim_one($left, 'payments', worker => 'slow', lease => '200 ms');
  is(wait_until($app, 'ready 1', q{SELECT status || ' ' || attempt FROM coord.tasks WHERE saga_id = ?}, $id), 'ready 1',
    'an expired lease puts the task back, the attempt stays charged');
  is(one($app, q{SELECT string_agg(event || ': ' || error, ',') FROM coord.saga_log WHERE saga_id = ?}, $id),
    'attempt_failed: the lease expired', 'and is in the log');
  is(complete($left, $task, '{"late": true}'), 1, 'a late completion is accepted as long as nobody else has claimed');
  is(scalar(claim($right, 'payments')), 0, 'and then there is nothing to claim');
  status_becomes('the saga is completed', $id, 'completed');
  is(output_of($id), '{"charge": {"late": true}}', 'by it');
}

{
  my $id = start('pay');
  my $task = claim_one($left, 'payments', worker => 'slow', lease => '200 ms');
  my $second = claim_one($right, 'payments', worker => 'fast');
  is("@$second{qw(task_id attempt)}", "$task->{task_id} 2", 'an expired task is claimed by another');
  foreach my $call (q{task_complete(?, ?)}, q{task_fail(?, ?, 'no')}, q{task_extend(?, ?)}, q{task_release(?, ?)})
  {
    like(error_of($left, "SELECT coord.$call", @$task{qw(task_id token)}), qr/^ZC001/, "then $call of the first is refused");
  }
  is(one($left, q{SELECT coord.task_complete_many(ARRAY[?]::bigint[], ARRAY[?]::bigint[])::text}, @$task{qw(task_id token)}), '{}',
    'and left out by task_complete_many()');
  is(complete($right, $second, '{"by": "fast"}'), 1, 'the second one completes it');
  status_becomes('the saga is completed', $id, 'completed');
  is(output_of($id), '{"charge": {"by": "fast"}}', 'by the second');
}

# The lease ends while the completion is not committed yet.
foreach my $end (qw(commit rollback))
{
  my $id = start('pay');
  my $task = claim_one($left, 'payments', lease => '300 ms');
  $left->begin_work;
  complete($left, $task, '{"by": "first"}');
  wait_until($app, 1, q{SELECT (clock_timestamp() > ?::timestamptz)::int}, $task->{lease_expires_at});
  is(scalar(claim($right, 'payments')), 0, 'a lease that ends during an open completion is not taken away');
  if ($end eq 'commit')
  {
    $left->commit;
    status_becomes('the completion that is committed later counts', $id, 'completed');
    is(one($app, q{SELECT count(*) FROM coord.saga_log WHERE saga_id = ?}, $id), 0, 'no attempt failed');
    is(scalar(claim($right, 'payments')), 0, 'nothing is delivered again');
  }
  else
  {
    my $waiting = claim_later($right, 'payments', timeout => '20 s');
    wait_for_sleep($right);
    $left->rollback;
    my @tasks;
    cmp_ok(seconds { @tasks = claimed($waiting) }, '<', $promptly, 'a completion that is rolled back after its lease');
    is(join(',', map { "$_->{saga_id} $_->{attempt}" } @tasks), "$id 2", 'leads to another delivery');
    complete($right, $tasks[0], 'null');
    status_becomes('the saga is completed', $id, 'completed');
  }
}

# The other way round: another claim is not committed yet.
foreach my $end (qw(commit rollback))
{
  my $id = start('pay');
  my $task = claim_one($left, 'payments', lease => '200 ms');
  wait_until($app, 'ready 1', q{SELECT status || ' ' || attempt FROM coord.tasks WHERE saga_id = ?}, $id);
  $right->begin_work;
  my $second = claim_one($right, 'payments');
  is($second->{task_id}, $task->{task_id}, 'an expired task is claimed, not yet committed');
  begin_statement($left, "SELECT coord.task_complete($task->{task_id}, $task->{token}, '{\"by\": \"first\"}')");
  wait_for_lock($left);
  $right->$end;
  is(end_statement($left), $end eq 'commit' ? 'ZC001' : 'no error', "the late completion waits for the claim, which ends in $end");
  complete($right, $second, '{"by": "second"}') if $end eq 'commit';
  status_becomes('the saga is completed', $id, 'completed');
  is(output_of($id), sprintf('{"charge": {"by": "%s"}}', $end eq 'commit' ? 'second' : 'first'), 'by the right one');
}

### Waiting

# Begin to wait in session $right, do $code, and how long it then takes.
sub wait_while
{
  my ($queue, $code, %options) = @_;
  my $waiting = claim_later($right, $queue, timeout => '20 s', %options);
  wait_for_sleep($right);
  my @tasks;
  my $begin = time;
  $code->();
  @tasks = claimed($waiting);
  return (time - $begin, @tasks);
}

define('wait', q{coord.step('w', queue => 'waiting', retry_delay => '10 ms')});
{
  one($app, q{SELECT coord.queue_configure('waiting')});
  my ($id, $time, @tasks);
  my $task = sub { return join ',', map { "$_->{saga_id} $_->{attempt}" } @tasks };

  ($time, @tasks) = wait_while('waiting', sub { $id = start('wait') });
  is($task->(), "$id 1", 'a claim that waits gets a task that is new');
  cmp_ok($time, '<', $promptly, 'promptly');

  ($time, @tasks) = wait_while('waiting', sub { one($app, q{SELECT coord.task_release(?, ?)}, @{ $tasks[0] }{qw(task_id token)}) });
  is($task->(), "$id 1", 'one that is given back');
  cmp_ok($time, '<', $promptly, 'promptly');

  ($time, @tasks) = wait_while('waiting', sub { one($app, q{SELECT coord.task_revoke(?)}, $tasks[0]{task_id}) });
  is($task->(), "$id 1", 'one that is taken away');
  cmp_ok($time, '<', $promptly, 'promptly');

  ($time, @tasks) = wait_while('waiting', sub {
    one($app, q{SELECT coord.task_fail(?, ?, 'not yet', retry_in => '1 s')}, @{ $tasks[0] }{qw(task_id token)}) });
  is($task->(), "$id 2", 'one that was delayed');
  cmp_ok($time, '<', $promptly, 'promptly');
  cmp_ok($time, '>', 0.9, 'when its time has come');

  # Claimed again with a lease that ends while the other one waits.
  one($app, q{SELECT coord.task_release(?, ?)}, @{ $tasks[0] }{qw(task_id token)});
  my $held = claim_one($left, 'waiting', lease => '1 s');
  ($time, @tasks) = wait_while('waiting', sub { });
  is($task->(), "$id 3", 'one whose lease expires');
  cmp_ok($time, '<', $promptly, 'promptly');
  is(one($app, q{SELECT extract(epoch FROM claimed_at - ?::timestamptz) BETWEEN 0 AND 3 FROM coord_internal.task WHERE id = ?},
    $held->{lease_expires_at}, $held->{task_id}), 1, 'when it does and not before');

  # A claim that is rolled back, and one in a savepoint.
  one($app, q{SELECT coord.task_release(?, ?)}, @{ $tasks[0] }{qw(task_id token)});
  $left->begin_work;
  claim_one($left, 'waiting');
  ($time, @tasks) = wait_while('waiting', sub { $left->rollback });
  is($task->(), "$id 3", 'one whose claim is rolled back');
  cmp_ok($time, '<', $promptly, 'promptly');
  one($app, q{SELECT coord.task_release(?, ?)}, @{ $tasks[0] }{qw(task_id token)});
  $left->begin_work;
  $left->do('SAVEPOINT s');
  claim_one($left, 'waiting');
  ($time, @tasks) = wait_while('waiting', sub { $left->do('ROLLBACK TO s') });
  is($task->(), "$id 3", 'one whose claim is rolled back to a savepoint');
  cmp_ok($time, '<', $promptly, 'promptly');
  $left->rollback;

  # Paused, full.
  one($app, q{SELECT coord.task_release(?, ?)}, @{ $tasks[0] }{qw(task_id token)});
  one($app, q{SELECT coord.queue_configure('waiting', paused => true)});
  is(scalar(claim($left, 'waiting')), 0, 'a paused queue gives nothing');
  ($time, @tasks) = wait_while('waiting', sub { one($app, q{SELECT coord.queue_configure('waiting', paused => false)}) });
  is($task->(), "$id 3", 'one of a queue that is resumed');
  cmp_ok($time, '<', $promptly, 'promptly');
  one($app, q{SELECT coord.queue_configure('waiting', max_running => 1)});
  my $other = start('wait');
  eventually('another task is ready', $app, 'ready 0', q{SELECT status || ' ' || attempt FROM coord.tasks WHERE saga_id = ?}, $other);
  my $first = $tasks[0];
  ($time, @tasks) = wait_while('waiting', sub { complete($app, $first, 'null') }, max_tasks => 10);
  is($task->(), "$other 1", 'one for which there was no room in the queue');
  cmp_ok($time, '<', $promptly, 'promptly');
  status_becomes('the first saga is completed', $id, 'completed');
  complete($app, $tasks[0], 'null');
  status_becomes('and the other', $other, 'completed');
  one($app, q{SELECT coord.queue_configure('waiting', max_running => 2147483647)});

  # The engine is paused.
  one($app, q{SELECT coord.pause()});
  $id = start('wait');
  ($time, @tasks) = wait_while('waiting', sub { one($app, q{SELECT coord.resume()}) });
  is($task->(), "$id 1", 'one after coord.resume()');
  cmp_ok($time, '<', $promptly, 'promptly');
  complete($app, $tasks[0], 'null');

  # Three wait, three tasks come at once: one for each.
  my @waiting = map { claim_later($_, 'waiting', timeout => '20 s') } @session[ 1 .. 3 ];
  wait_for_sleep($_) foreach @session[ 1 .. 3 ];
  my @id;
  $time = seconds {
    $app->begin_work;
    @id = map { start('wait') } 1 .. 3;
    $app->commit;
    @tasks = map { claimed($_) } @waiting;
  };
  is(join(',', sort map { $_->{saga_id} } @tasks), join(',', sort @id), 'three that wait get one of three tasks each');

  # At once nearly always; what is promised is the next look, after 5 s.
  cmp_ok($time, '<', 10, 'at the next look at the latest');
  is(one($app, q{SELECT cardinality(coord.task_complete_many(?, ?))}, [ map { $_->{task_id} } @tasks ],
    [ map { $_->{token} } @tasks ]), 3, 'and all are completed by one call');

  # In vain, and without working.
  my $ticks = sub {
    my @field = split / /, (slurp_file("/proc/$right->{pg_pid}/stat") =~ s/.*\) //r);
    return $field[11] + $field[12];
  };
  my $before = $ticks->();
  $time = seconds { @tasks = claim($right, 'waiting', timeout => '1500 ms') };
  cmp_ok($ticks->() - $before, '<=', 5, 'who waits does not work');
  is(scalar(@tasks), 0, 'when nothing comes, nothing is returned');
  cmp_ok($time, '>', 1.4, 'when the time is over');
  $right->do(q{SET coord.max_function_wait = '100ms'});
  $time = seconds { @tasks = claim($right, 'waiting', timeout => '1 hour') };
  cmp_ok($time, '<', $promptly, 'coord.max_function_wait limits it');
  $right->do(q{RESET coord.max_function_wait});
}

# CALL coord.await() holds no snapshot.
{
  begin_statement($right, q{CALL coord.await('queue', 'waiting', '20 s')});
  wait_for_sleep($right);
  is(one($admin, q{SELECT backend_xmin IS NULL AND backend_xid IS NULL FROM pg_stat_activity WHERE pid = ?}, $right->{pg_pid}), 1,
    'coord.await() waits without a snapshot');
  my $waiting = claim_later($left, 'waiting', timeout => '20 s');
  wait_for_sleep($left);
  is(one($admin, q{SELECT backend_xmin IS NULL FROM pg_stat_activity WHERE pid = ?}, $left->{pg_pid}), 0,
    'coord.task_claim() has one, which shows that the test can tell');
  $app->begin_work;
  start('wait') foreach 1 .. 2;
  $app->commit;
  my @tasks;
  cmp_ok(seconds { @tasks = claimed($waiting); $right->pg_result }, '<', $promptly, 'both return promptly when there is a task');
  is(one($right, q{CALL coord.await('queue', 'waiting', '10 s')}), 1, 'it says so when one is ready');
  my ($task) = claim($right, 'waiting');
  is(one($right, q{CALL coord.await('queue', 'waiting', '50 ms')}), 0, 'and when none is');

  # What it waits for comes by a timer as well.
  foreach my $case ([ 'delayed', q{SELECT coord.task_fail(?, ?, 'later', retry_in => '1 s')} ],
    [ 'whose lease expires', q{SELECT coord.task_extend(?, ?, '1 s')} ])
  {
    my ($what, $sql) = @$case;
    one($right, q{SELECT coord.task_release(?, ?)}, @$task{qw(task_id token)});
    $task = claim_one($right, 'waiting', lease => '100 ms');
    one($right, $sql, @$task{qw(task_id token)});
    my $ready;
    my $time = seconds { $ready = one($right, q{CALL coord.await('queue', 'waiting', '20 s')}) };
    is($ready, 1, "coord.await() sees a task $what");
    cmp_ok($time, '<', $promptly, 'promptly');
    cmp_ok($time, '>', 0.5, 'and not before');
    $task = claim_one($right, 'waiting');
  }
  complete($app, $_, 'null') foreach $task, @tasks;
  eventually('all are done', $app, 0, q{SELECT count(*) FROM coord.tasks});
}

### LISTEN

{
  my @queues = ('listened', 'Odd "queue" näme', 'q' x 60);
  my @channels = ('coord_queue_listened', 'coord_queue_Odd "queue" näme', 'coord_queue_' . 'q' x 51);
  my $listener = session($node, 'app');
  $listener->do('LISTEN ' . $listener->quote_identifier($_)) foreach @channels;
  my %seen;
  # Notifications until there is one in the channel; how many there have been.
  my $listen = sub {
    my ($channel, $while) = @_;
    my $end = time + 20;
    my $count = 0;
    while (time < $end)
    {
      while (my $notify = $listener->pg_notifies)
      {
        my ($name, $pid) = @$notify;
        $count++ if $name eq $channel;
        $seen{$pid} = 1;
      }
      last if $count && !($while && $while->());
      sleep 0.01;
    }
    return $count;
  };
  foreach my $i (0 .. $#queues)
  {
    $app->begin_work;
    one($app, q{SELECT coord.saga_define(?, ARRAY[coord.step('w', queue => ?, retry_delay => '10 ms')])}, "listen $i", $queues[$i]);
    $app->commit;
    my $id = start("listen $i");
    cmp_ok($listen->($channels[$i]), '>=', 1, "a notification in $channels[$i]");
    is(wait_until($app, 'ready 0', q{SELECT status || ' ' || attempt FROM coord.tasks WHERE saga_id = ?}, $id), 'ready 0',
      'there is a task');
  }

  # Once the worker has gone home: a verb in a user's transaction, the time.
  wait_until($admin, 0, 'SELECT count(*) ' . WORKERS, 'app');
  my $task = claim_one($left, 'listened', lease => '30 s');
  $listener->pg_notifies;
  my $time = seconds { one($left, q{SELECT coord.task_release(?, ?)}, @$task{qw(task_id token)}); $listen->($channels[0]) };
  cmp_ok($time, '<', $promptly, 'a notification of a task that was given back');
  foreach my $case ([ 'was delayed', q{SELECT coord.task_fail(?, ?, 'later', retry_in => '1 s')} ],
    [ 'was let expire', q{SELECT coord.task_extend(?, ?, '1 s')} ])
  {
    my ($what, $sql) = @$case;
    wait_until($admin, 0, 'SELECT count(*) ' . WORKERS, 'app');
    $task = claim_one($left, 'listened', lease => '100 ms');
    one($left, $sql, @$task{qw(task_id token)});
    1 while $listener->pg_notifies;
    $time = seconds { $listen->($channels[0]) };
    cmp_ok($time, '<', $promptly, "a notification of a task that $what");
  }
  $task = claim_one($left, 'listened');
  complete($left, $task, 'null');

  # Coalesced.
  1 while $listener->pg_notifies;
  my $count;
  $time = seconds {
    foreach (1 .. 30)
    {
      $app->do(q{SELECT coord.saga_start('listen 0') FROM generate_series(1, 10)});
    }
    $count = $listen->($channels[0], sub { one($app, q{SELECT ready FROM coord.queues WHERE queue = 'listened'}) < 300 });
  };
  cmp_ok($count, '>=', 1, 'a notification of 300 tasks');
  cmp_ok($count, '<=', $time * 10 + 2, sprintf 'and not more than one in 100 ms: %d in %.1f s', $count, $time);
  cmp_ok($count, '<', 100, 'few');

  cmp_ok(scalar(keys %seen), '>=', 1, 'all notifications come from processes');
  is(one($admin, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type <> 'coord worker' AND pid = ANY (?)}, [ keys %seen ]),
    0, 'that are background workers or gone');
  ok(!$seen{ $_->{pg_pid} }, 'not from a session that made a task ready') foreach $app, $left;
  my @tasks = claim($left, 'listened', max_tasks => 300);
  is(one($left, q{SELECT cardinality(coord.task_complete_many(?, ?))}, [ map { $_->{task_id} } @tasks ],
    [ map { $_->{token} } @tasks ]), 300, 'they are all there');
  complete($left, claim_one($left, $_), 'null') foreach @queues[ 1, 2 ];
  eventually('all sagas are done', $app, 0, q{SELECT count(*) FROM coord.sagas WHERE finished_at IS NULL});
  $listener->disconnect;
}

### Prepared transactions

define('ask', q{coord.step_signal('answer', 'go'), coord.step('after', 'public.note')});
# Does $code in a transaction that is prepared.
sub prepared
{
  my ($code) = @_;
  $left->do('BEGIN');
  $code->();
  $left->do(q{PREPARE TRANSACTION 'tasks'});
  return;
}

{
  # task_complete()
  my $id = start('pay');
  my $task = claim_one($left, 'payments');
  prepared(sub { complete($left, $task, '{"by": "prepared"}') });
  is(task_is($id), 'running 1', 'a prepared completion is not there yet');
  cmp_ok(seconds { $right->do(q{COMMIT PREPARED 'tasks'}); wait_until($app, 'completed', q{SELECT coord.saga_status(?)}, $id) },
    '<', $promptly, 'after COMMIT PREPARED the saga goes on promptly');
  is(output_of($id), '{"charge": {"by": "prepared"}}', 'with its result');

  $id = start('pay');
  $task = claim_one($left, 'payments', lease => '500 ms');
  prepared(sub { complete($left, $task, '{"by": "prepared"}') });
  wait_until($app, 1, q{SELECT (clock_timestamp() > ?::timestamptz)::int}, $task->{lease_expires_at});
  is(scalar(claim($right, 'payments')), 0, 'a task whose completion is prepared is not delivered again');
  my $waiting = claim_later($right, 'payments', timeout => '20 s');
  wait_for_sleep($right);
  $left->do(q{ROLLBACK PREPARED 'tasks'});
  my @tasks;
  cmp_ok(seconds { @tasks = claimed($waiting) }, '<', $promptly, 'after ROLLBACK PREPARED its lease has expired');
  is("@{$tasks[0]}{qw(saga_id attempt)}", "$id 2", 'and it is delivered again');
  complete($right, $tasks[0], '{"by": "second"}');
  status_becomes('then the saga is completed', $id, 'completed');
  is(output_of($id), '{"charge": {"by": "second"}}', 'by the second');

  # task_claim()
  $id = start('pay');
  prepared(sub { $task = claim_one($left, 'payments') });
  is(task_is($id), 'ready 0', 'a prepared claim is not there yet');
  is(scalar(claim($right, 'payments')), 0, 'and keeps others from it');
  $right->do(q{COMMIT PREPARED 'tasks'});
  is(task_is($id), 'running 1', 'after COMMIT PREPARED it is');
  is(complete($right, $task, '{"by": "prepared"}'), 1, 'and its token is good');
  status_becomes('the saga is completed', $id, 'completed');

  $id = start('pay');
  prepared(sub { $task = claim_one($left, 'payments') });
  $waiting = claim_later($right, 'payments', timeout => '20 s');
  wait_for_sleep($right);
  cmp_ok(seconds { $left->do(q{ROLLBACK PREPARED 'tasks'}); @tasks = claimed($waiting) }, '<', $promptly,
    'after ROLLBACK PREPARED of a claim who waits gets it');
  is("@{$tasks[0]}{qw(saga_id attempt)}", "$id 1", 'as if nothing had been');
  cmp_ok($tasks[0]{token}, '>', $task->{token}, 'but with another token') if $tasks[0];
  like(error_of($left, q{SELECT coord.task_complete(?, ?)}, @$task{qw(task_id token)}), qr/^ZC001/, 'the other is not good');
  complete($right, $tasks[0], 'null');
  status_becomes('the saga is completed', $id, 'completed');

  # task_fail(), task_release()
  $id = start('pay');
  $task = claim_one($left, 'payments');
  prepared(sub { one($left, q{SELECT coord.task_release(?, ?)}, @$task{qw(task_id token)}) });
  $waiting = claim_later($right, 'payments', timeout => '20 s');
  wait_for_sleep($right);
  cmp_ok(seconds { $left->do(q{COMMIT PREPARED 'tasks'}); @tasks = claimed($waiting) }, '<', $promptly,
    'after COMMIT PREPARED of task_release() who waits gets it');
  is("@{$tasks[0]}{qw(saga_id attempt)}", "$id 1", 'without an attempt charged');
  ($task) = @tasks;
  prepared(sub { one($left, q{SELECT coord.task_fail(?, ?, 'no', retryable => false)}, @$task{qw(task_id token)}) });
  $right->do(q{COMMIT PREPARED 'tasks'});
  status_becomes('after COMMIT PREPARED of task_fail() the saga turns back', $id, 'compensating');
  my $undo = claim_one($right, 'payments');
  is("@$undo{qw(saga_id phase action null_compensation)}", "$id compensation refund 0", 'its worker has to undo it');
  prepared(sub { complete($left, $undo, 'null') });
  $right->do(q{COMMIT PREPARED 'tasks'});
  status_becomes('and then it is compensated', $id, 'compensated');

  # saga_signal(), saga_start()
  $id = start('ask');
  prepared(sub { one($left, q{SELECT coord.saga_signal(?, 'go', '"rolled back"', 'one')}, $id) });
  is(one($app, q{SELECT coord.saga_status(?)}, $id), 'running', 'a prepared signal is not there yet');
  $right->do(q{ROLLBACK PREPARED 'tasks'});
  prepared(sub { one($left, q{SELECT coord.saga_signal(?, 'go', '"committed"', 'one')}, $id) });
  cmp_ok(seconds { $right->do(q{COMMIT PREPARED 'tasks'}); wait_until($app, 'completed', q{SELECT coord.saga_status(?)}, $id) },
    '<', $promptly, 'after COMMIT PREPARED of a signal the saga goes on promptly');
  is(output_of($id), '{"after": "after", "answer": "committed"}', 'by the one that was committed');
  prepared(sub { $id = one($left, q{SELECT coord.saga_start('pay')}) });
  $right->do(q{COMMIT PREPARED 'tasks'});
  $task = claim_one($right, 'payments');
  is($task->{saga_id}, $id, 'after COMMIT PREPARED of a start its task comes');

  # All of it across a crash.
  my $asking = start('ask');
  my $held = start('pay');
  eventually('both wait', $app, 'ready 0', q{SELECT status || ' ' || attempt FROM coord.tasks WHERE saga_id = ?}, $held);
  my $claimed;
  prepared(sub {
    complete($left, $task, '{"by": "prepared"}');
    one($left, q{SELECT coord.saga_signal(?, 'go')}, $asking);
    $claimed = claim_one($left, 'payments');
  });
  is($claimed->{saga_id}, $held, 'one transaction completes, signals and claims');
  $_->disconnect foreach @session, $app, $bank, $admin;
  $node->stop('immediate');
  $node->start;
  $app = session($node, 'app');
  $admin = session($node, 'postgres');
  @session = map { session($node, 'app') } 1 .. 4;
  ($left, $right) = @session;
  is(one($app, q{SELECT string_agg(coord.saga_status(i), ',') FROM unnest(?::bigint[]) i}, [ $id, $asking, $held ]),
    'running,running,running', 'after a crash it is still prepared');
  is(scalar(claim($right, 'payments')), 0, 'and keeps its tasks from others');
  $left->do(q{COMMIT PREPARED 'tasks'});
  status_becomes('COMMIT PREPARED: completed', $id, 'completed');
  status_becomes('signalled', $asking, 'completed');
  is(complete($right, $claimed, 'null'), 1, 'claimed');
  status_becomes('completed as well', $held, 'completed');
}

### PgBouncer in transaction mode, with two connections

{
  local $ENV{PATH} = "$ENV{PATH}:/usr/sbin";
  my $dir = PostgreSQL::Test::Utils::tempdir;
  my $port = PostgreSQL::Test::Cluster::get_free_port();
  my $user = one($app, 'SELECT current_user');
  append_to_file("$dir/users", qq{"$user" ""\n});
  append_to_file("$dir/pgbouncer.ini", join "\n", '[databases]',
    'app = host=' . $node->host . ' port=' . $node->port . ' dbname=app', '[pgbouncer]',
    'listen_addr = 127.0.0.1', "listen_port = $port", 'unix_socket_dir =', 'auth_type = trust',
    "auth_file = $dir/users", 'pool_mode = transaction', 'default_pool_size = 2', 'max_client_conn = 50',
    "logfile = $dir/log", "pidfile = $dir/pid", 'ignore_startup_parameters = extra_float_digits', '');
  my $bouncer = IPC::Run::start([ 'pgbouncer', '-q', "$dir/pgbouncer.ini" ], '<', \undef, '>', '/dev/null', '2>', "$dir/err");
  my $pooled = sub {
    my $end = time + 20;
    while (1)
    {
      my $dbh = eval { session($node, 'app', host => '127.0.0.1', port => $port, plain => 1) };
      if ($dbh)
      {
        $dbh->{pg_server_prepare} = 0;
        return $dbh;
      }
      die "no PgBouncer: $@" if time > $end;
      sleep 0.05;
    }
  };
  my @worker = map { $pooled->() } 1 .. 6;

  # Each claims in one connection and completes in whichever there is.
  my @id = map { start('pay') } 1 .. 60;
  my %done;
  my $end = time + 20;
  while (keys %done < @id && time < $end)
  {
    my @batch = map { [ claim($_, 'payments', max_tasks => 3, timeout => '100 ms', worker => 'pooled') ] } @worker;
    foreach my $i (0 .. $#worker)
    {
      my $next = $worker[ ($i + 1) % @worker ];
      foreach my $task (@{ $batch[$i] })
      {
        $done{ $task->{saga_id} } += complete($next, $task, 'null');
      }
    }
  }
  is(join(',', map { $done{$_} // 0 } @id), join(',', map { 1 } @id), 'tasks claimed in one connection are completed in another, once');
  eventually('and all sagas are', $app, 60, q{SELECT count(*) FROM coord.sagas WHERE id = ANY (?) AND status = 'completed'}, \@id);

  # More wait than there are connections.
  my @waiting = map { claim_later($_, 'payments', timeout => '2 s') } @worker[ 0 .. 3 ];
  @id = map { start('pay') } 1 .. 4;
  my @tasks = map { claimed($_) } @waiting;
  is(join(',', sort map { $_->{saga_id} } @tasks), join(',', sort @id), 'four wait on two connections, and each gets its task');
  is(one($worker[4], q{SELECT cardinality(coord.task_complete_many($1, $2))}, [ map { $_->{task_id} } @tasks ],
    [ map { $_->{token} } @tasks ]), 4, 'task_complete_many()');
  $worker[5]->do(q{CALL coord.await('queue', 'payments', '20 s')}, { pg_async => DBD::Pg::PG_ASYNC() });
  my $id = start('pay');
  ok(eval { $worker[5]->pg_result; 1 }, 'coord.await() through PgBouncer');
  my $task = claim_one($worker[0], 'payments');
  is(one($worker[1], q{SELECT coord.task_extend(?, ?, '1 min') > now() + '30 s'}, @$task{qw(task_id token)}), 1, 'task_extend()');
  is(one($worker[2], q{SELECT coord.task_release(?, ?)}, @$task{qw(task_id token)}), 1, 'task_release()');
  $task = claim_one($worker[3], 'payments');

  # With its own writes.
  $worker[4]->begin_work;
  $worker[4]->do('INSERT INTO receipt VALUES (?, ?)', undef, $task->{idempotency_key}, 'pooled');
  complete($worker[4], $task, 'null');
  $worker[4]->rollback;
  is(task_is($id), 'running 1', 'a transaction that is rolled back has not completed its task');
  $worker[4]->begin_work;
  $worker[4]->do('INSERT INTO receipt VALUES (?, ?)', undef, $task->{idempotency_key}, 'pooled');
  complete($worker[4], $task, 'null');
  $worker[4]->commit;
  status_becomes('one that is committed has', $id, 'completed');
  is(one($app, q{SELECT count(*) FROM receipt WHERE worker = 'pooled'}), 1, 'together with its own writes');
  is(one($admin, q{SELECT count(*) <= 2 FROM pg_stat_activity WHERE datname = 'app' AND backend_type = 'client backend'
      AND pid <> ALL (?)}, [ map { $_->{pg_pid} } $app, @session ]), 1, 'all that took two connections');
  $_->disconnect foreach @worker;
  $bouncer->signal('INT');
  $bouncer->finish;
}

is(one($app, 'SELECT count(*) FROM coord.stuck'), 0, 'nothing is stuck');
is(one($app, "SELECT count(*) FROM coord_internal.$_"), 0, "coord_internal.$_ is empty")
  foreach qw(task saga_inbox saga_signal saga);
unlike(slurp_file($node->logfile), qr/PANIC|TRAP:|terminated by signal/, 'no crashes');
$_->disconnect foreach @session, $app, $admin;
$node->stop;
done_testing();
