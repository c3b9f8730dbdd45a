# Fencing tokens grow: over kill -9 of a backend, an immediate stop, a restart,
# promotion of a standby that has missed the last grants, dump and restore into a new
# cluster, recovery to an earlier time of the same one, and also where they are ahead of the
# clock; to their end.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use CoordLocks;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Tokens of an hour.
my $hour = 3600 << 22;

my $node = PostgreSQL::Test::Cluster->new('tokens');
$node->init(allows_streaming => 1);
configure($node, shared_preload_libraries => 'coord', restart_after_crash => 'on', 'coord.worker_idle_timeout' => '200ms');
$node->start;
my $dbh = session($node, 'postgres');
$dbh->do("CREATE DATABASE $_") foreach qw(app other);
$dbh->disconnect;
$dbh = session($node, 'app');
$dbh->do('CREATE EXTENSION coord');

# The highest of each name so far.
my %last;

# Grants of all kinds: each higher than all before of its name.
sub tokens_grow
{
  my ($after, $dbh) = @_;
  local $Test::Builder::Level = $Test::Builder::Level + 1;
  my @grants = (
    [ 'lock', sub { one($dbh, q{SELECT coord.lock('lock')}) } ],
    [ 'lock', sub { my $t = one($dbh, q{SELECT coord.lock('lock', scope => 'session')}); one($dbh, q{SELECT coord.unlock('lock')}); $t } ],
    [ 'many', sub { one($dbh, q{SELECT (coord.lock_many('{many, more}'))[1]}) } ],
    [ 'lease', sub { my $t = acquire($dbh, 'lease', 'me'); release($dbh, 'lease', $t); $t } ],
    [ 'rolled back', sub { $dbh->begin_work; my $t = acquire($dbh, 'rolled back', 'me'); $dbh->rollback; $t } ],
    [ 'rolled back', sub { $dbh->begin_work; my $t = one($dbh, q{SELECT coord.lock('rolled back')}); $dbh->rollback; $t } ],
    [ 'leader', sub { my $t = one($dbh, q{SELECT token FROM coord.leader_campaign('leader', 'me')});
        one($dbh, q{SELECT coord.leader_resign('leader', 'me')}); $t } ],
    [ 'semaphore', sub { one($dbh, q{SELECT coord.semaphore_create('semaphore', 3)}); my $t = acquire($dbh, 'semaphore', 'me', permits => 2);
        release($dbh, 'semaphore', $t); $t } ],
    # Kept: its row has the highest token so far.
    [ 'broken', sub { one($dbh, q{SELECT coord.lease_break('broken')}); acquire($dbh, 'broken', 'me', ttl => '10 min') } ]);
  my @bad;
  foreach my $grant (@grants)
  {
    my ($name, $code) = @$grant;
    my $token = $code->();
    push @bad, "$name: $token after $last{$name}" if $token <= ($last{$name} // 0);
    $last{$name} = $token;
  }
  is(join(', ', @bad), '', "after $after tokens are higher than all of their names before");
  # By whoever asks in another mode.
  my ($token) = one($dbh, q{SELECT coord.lock('lock', 'share')});
  cmp_ok($token, '>=', $last{lock}, 'the mode share is told no lower one');
  cmp_ok(one($dbh, q{SELECT coord.lock('lock')}), '>', $token, 'and the next holder has a higher one');
  return;
}

sub restarted
{
  my ($how) = @_;
  $dbh->disconnect;
  $node->stop($how);
  $node->start;
  $dbh = session($node, 'app');
  return;
}

tokens_grow('the start', $dbh);
my $victim = session($node, 'app');
one($victim, q{SELECT coord.lock('lock', scope => 'session')});
crash_server($node, $dbh, $victim->{pg_pid});
eval { $victim->disconnect };
$dbh = session($node, 'app');
tokens_grow('kill -9 of a backend', $dbh);
restarted('immediate');
tokens_grow('an immediate stop', $dbh);
restarted('fast');
tokens_grow('a restart', $dbh);
kill_server($node);
$dbh = session($node, 'app');
tokens_grow('kill -9 of the postmaster', $dbh);

### A standby that has missed the last grants

{
  $node->backup('base');
  my $standby = PostgreSQL::Test::Cluster->new('standby');
  $standby->init_from_backup($node, 'base', has_streaming => 1);
  $standby->start;
  $node->wait_for_catchup($standby, 'replay', $node->lsn('flush'));
  my $seen = $last{broken};
  my $reader = session($standby, 'app');
  is(one($reader, 'SELECT max(token) FROM coord_internal.lease'), $seen, 'the standby has the last grant');
  $reader->do(q{ALTER SYSTEM SET primary_conninfo = ''});
  one($reader, 'SELECT pg_reload_conf()');
  eventually('then it receives nothing more', $reader, 0, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walreceiver'});
  eventually('and nobody sends', $dbh, 0, 'SELECT count(*) FROM pg_stat_replication');
  tokens_grow('the standby went', $dbh);
  is(one($reader, 'SELECT max(token) FROM coord_internal.lease'), $seen, 'the standby has missed the last grants');
  $_->disconnect foreach $reader, $dbh;
  $node->stop('immediate');
  $standby->promote;
  $node = $standby;
  $dbh = session($node, 'app');
  tokens_grow('its promotion', $dbh);
}

### Ahead of the clock

# As if the clock had been that far ahead when the last lease was granted.
sub store_ahead
{
  my ($by) = @_;
  $dbh->do(q{UPDATE coord_internal.lease SET token = token + ? WHERE name = 'broken'}, undef, $by);
  $last{$_} += $by foreach keys %last;
  restarted('immediate');
  return;
}

# Half an hour is made up for.
store_ahead($hour / 2);
tokens_grow('a clock that was half an hour ahead', $dbh);
foreach my $how ('immediate', 'fast')
{
  restarted($how);
  tokens_grow("a stop ($how), and the clock still behind", $dbh);
}

# Two days are not believed.  (A few hours are reserved by now.)
{
  store_ahead(48 * $hour);
  my $stored = $last{broken};
  foreach my $grant (q{lock('lock')}, q{lock('lock', 'share')}, q{try_lock('lock', scope => 'session')}, q{lock_many('{a,b}')},
    q{lease_acquire('lease', 'me')}, q{leader_campaign('leader', 'me')}, q{lease_acquire('semaphore', 'me')})
  {
    like(error_of($dbh, "SELECT * FROM coord.$grant"), qr/^55000 .*DETAIL:.*$stored.*HINT:.*coord\.fence_advance\($stored\)/s,
      "$grant is refused while a token is stored that is days ahead");
  }
  # But for that by which a session knows that its locks are still there.
  is(one($dbh, q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid >> 8 <> 80}), 0, 'and nothing is held');
  is(error_of($dbh, qq{SELECT coord.lease_renew('broken', $stored)}), 'no error', 'who has a lease can renew it');
  is(error_of($dbh, qq{SELECT coord.fence_check('broken', $stored)}), 'no error', 'and check it');
  my $other = session($node, 'other');
  $other->do('CREATE EXTENSION coord');
  is(error_of($other, q{SELECT coord.lock('lock')}), 'no error', 'another database grants');
  $other->disconnect;
  restarted('fast');
  like(error_of($dbh, q{SELECT coord.lock('lock')}), qr/^55000/, 'refused after a restart as well');
  like(error_of($dbh, q{SELECT coord.fence_advance(?)}, $stored - 1), qr/^22023/, 'less than what is stored does not help');
  like(error_of($dbh, q{SELECT coord.lock('lock')}), qr/^55000/, 'it is refused still');
  is(one($dbh, q{SELECT coord.fence_advance(?)}, $stored), 1, 'coord.fence_advance()');
  tokens_grow('coord.fence_advance()', $dbh);
  is(error_of($dbh, q{DO $$ BEGIN ASSERT NOT coord.fence_advance(%s); END $$} =~ s/%s/$stored/r), 'no error',
    'a second time it changes nothing');
  foreach my $how ('immediate', 'fast')
  {
    restarted($how);
    tokens_grow("coord.fence_advance() and a stop ($how)", $dbh);
  }
  $victim = session($node, 'app');
  crash_server($node, $dbh, $victim->{pg_pid});
  eval { $victim->disconnect };
  $dbh = session($node, 'app');
  tokens_grow('coord.fence_advance() and kill -9 of a backend', $dbh);
}

# Without anything stored.
{
  my $ahead = $last{broken} + 3 * $hour;
  $dbh->begin_work;
  is(one($dbh, q{SELECT coord.fence_advance(?)}, $ahead), 1, 'coord.fence_advance() in a transaction');
  $dbh->rollback;
  one($dbh, q{SELECT coord.lease_break('broken')});
  cmp_ok(one($dbh, q{SELECT coord.lock('lock')}), '>', $ahead, 'that is rolled back, has advanced');
  $last{lock} = $ahead;
  restarted('immediate');
  cmp_ok(one($dbh, q{SELECT coord.lock('lock')}), '>', $ahead, 'also for later runs of the server');
}

# Tokens are of the whole cluster.
{
  my $other = session($node, 'other');
  my $token = one($other, q{SELECT coord.lock('lock')});
  my $lease = acquire($other, 'lease', 'other', ttl => '10 min');
  $other->disconnect;
  restarted('immediate');
  $other = session($node, 'other');
  my $next = eval { one($other, q{SELECT coord.lock('lock')}) } // $other->errstr;
  cmp_ok($next =~ /^\d+$/ ? $next : 0, '>', $token, 'in another database tokens grow over a restart, too') or diag($next);
  $next = eval { one($other, q{SELECT coord.lease_break('lease')}); acquire($other, 'lease', 'other') } // $other->errstr;
  cmp_ok($next =~ /^\d+$/ ? $next : 0, '>', $lease, 'those of leases as well') or diag($next);
  $other->disconnect;
  tokens_grow('another database has been first', $dbh);
}

### Dump and restore into a new cluster

{
  my $dump = PostgreSQL::Test::Utils::tempdir . '/app.dump';
  $node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, $node->connstr('app') ], 'pg_dump');
  my $new = new_cluster('restored');
  my $admin = session($new, 'postgres');
  $admin->do('CREATE DATABASE app');
  $new->command_ok([ 'pg_restore', '--exit-on-error', '--no-owner', '--no-acl', '-d', $new->connstr('app'), $dump ],
    'pg_restore into a new cluster');
  my $restored = session($new, 'app');
  like(error_of($restored, q{SELECT coord.lease_acquire('lease', 'me')}), qr/^55000 this database is a copy.*HINT:.*coord\.resume/s,
    'it is a copy');
  cmp_ok(one($restored, q{SELECT coord.lock('lock')}), '>', $last{lock}, 'tokens of locks grow there');
  is(one($restored, q{SELECT coord.resume()}), 1, 'coord.resume()');
  is(one($restored, q{SELECT token FROM coord.leases WHERE name = 'broken'}), $last{broken}, 'the lease that was held is held');
  is(acquire($restored, 'broken', 'other'), undef, 'by its owner');
  is(acquire($restored, 'broken', 'me'), $last{broken}, 'who has the same token');
  $dbh->disconnect;
  $dbh = $restored;
  $node->stop;
  $node = $new;
  tokens_grow('dump and restore', $dbh);
  restarted('immediate');
  tokens_grow('that and an immediate stop', $dbh);
  $admin->disconnect;
}

# A dump of tokens that are days ahead, as nobody has reserved them, into a database that has granted already.
{
  $dbh->do(q{UPDATE coord_internal.lease SET token = token + ? WHERE name = 'broken'}, undef, 480 * $hour);
  my $far = one($dbh, q{SELECT token FROM coord_internal.lease WHERE name = 'broken'});
  my $dump = PostgreSQL::Test::Utils::tempdir . '/far.dump';
  $node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, $node->connstr('app') ], 'pg_dump');
  my $admin = session($node, 'postgres');
  $admin->do('CREATE DATABASE late');
  my @restore = ('pg_restore', '--exit-on-error', '--no-owner', '--no-acl', '-d', $node->connstr('late'));
  my ($list) = run_command([ 'pg_restore', '-l', $dump ]);
  append_to_file("$dump.extension", join '', map { "$_\n" } grep { /EXTENSION - coord / } split /\n/, $list);
  append_to_file("$dump.rest", join '', map { "$_\n" } grep { !/EXTENSION - coord / } split /\n/, $list);
  $node->command_ok([ @restore, '-L', "$dump.extension", $dump ], 'pg_restore of the extension');
  my $late = session($node, 'late');
  one($late, q{SELECT coord.lock('lock')});
  $node->command_ok([ @restore, '-L', "$dump.rest", $dump ], 'pg_restore of the rest, after a grant');
  is(one($late, q{SELECT coord.resume()}), 1, 'coord.resume()');
  like(error_of($late, q{SELECT coord.lease_acquire('lease', 'me')}), qr/^55000 .*fence_advance/s, 'then tokens that are days ahead are seen');
  is(one($late, q{SELECT coord.fence_advance(?)}, $far), 1, 'coord.fence_advance()');
  cmp_ok(acquire($late, 'lease', 'me'), '>', $far, 'and then there is a higher one');
  $_->disconnect foreach $late, $admin;
}

unlike(slurp_file($node->logfile), qr/PANIC|TRAP:/, 'no crashes');
$dbh->disconnect;
$node->stop;

### Recovery to an earlier time

{
  $node = PostgreSQL::Test::Cluster->new('archived');
  $node->init(has_archiving => 1, allows_streaming => 1);
  configure($node, shared_preload_libraries => 'coord', autovacuum => 'off', 'coord.worker_idle_timeout' => '200ms');
  $node->start;
  $dbh = session($node, 'postgres');
  $dbh->do('CREATE DATABASE app');
  $dbh->disconnect;
  $dbh = session($node, 'app');
  $dbh->do('CREATE EXTENSION coord');
  %last = ();
  tokens_grow('the start of a new cluster', $dbh);
  $node->backup('early');

  # Twice: by the clock, and where stored tokens are half an hour ahead of it, so that
  # numbers are reserved.
  foreach my $by ('the clock', 'numbers that are reserved')
  {
    if ($by ne 'the clock') { store_ahead($hour / 2) }
    tokens_grow("that, by $by", $dbh);
    my $kept = acquire($dbh, 'kept', $by, ttl => '10 min');
    my $seen = one($dbh, 'SELECT max(token) FROM coord_internal.lease');
    my $point = $by =~ s/ /_/gr;
    one($dbh, q{SELECT pg_create_restore_point(?)}, $point);
    is(release($dbh, 'kept', $kept), 1, 'a lease is released behind the point');
    tokens_grow('the point', $dbh);
    one($dbh, 'SELECT pg_switch_wal()');
    my $restored = PostgreSQL::Test::Cluster->new($by =~ s/ .*/_restored/r);
    $restored->init_from_backup($node, 'early', has_restoring => 1, standby => 0);
    configure($restored, recovery_target_name => $point, recovery_target_action => 'promote', archive_mode => 'off');
    # The original goes on until the last moment.
    tokens_grow('the end of the archive', $dbh);
    my %original = %last;
    $restored->start;
    $restored->poll_query_until('app', 'SELECT NOT pg_is_in_recovery()') or die 'recovery does not end';
    my $there = session($restored, 'app');
    is(one($there, q{SELECT count(*) FROM coord_internal.lease WHERE token > ?}, $seen), 0, 'what came behind the point is not there');
    is(one($there, q{SELECT owner || ' ' || token FROM coord.leases WHERE name = 'kept'}), "$by $kept", 'the lease is held again');
    is(error_of($there, q{SELECT coord.fence_check('kept', ?)}, $kept), 'no error', 'and its token is good');
    is(one($there, q{SELECT coord.lease_break('kept')}), 1, 'it is broken');
    tokens_grow("recovery to an earlier time, by $by,", $there);
    # Of each name higher than of any, since systems outside may go by one number for all.
    my ($highest) = sort { $b <=> $a } values %original;
    cmp_ok(acquire($there, 'kept', 'next'), '>', $highest, 'the next token of the lease is higher than all of the original');
    unlike(slurp_file($restored->logfile), qr/PANIC|TRAP:/, 'no crashes');
    $there->disconnect;
    $restored->stop;
    %last = %original;
  }
}

### The end

{
  # As if it were the year 2088, but for five.
  my $end = 2**53 - 1;
  one($dbh, q{SELECT setval('coord_internal.token_floor', ?)}, $end - 6);
  one($dbh, q{SELECT coord.lease_break('broken')});
  restarted('fast');
  my $mine = one($dbh, q{SELECT coord.lock('first', scope => 'session')});
  my $lease = acquire($dbh, 'last', 'me', ttl => '10 min');
  my @tokens = ($mine, $lease);
  while (@tokens < 100)
  {
    # The first that finds none has been granted the lock already.
    my $next = eval { one($dbh, q{SELECT coord.lock('lock', scope => 'session')}) } // last;
    one($dbh, q{SELECT coord.unlock('lock')});
    push @tokens, $next;
  }
  is(join(' ', @tokens), join(' ', $end - 5 .. $end - 1), 'tokens come to their end, each once');
  my %state = (
    'coord.locks' => q{SELECT string_agg(concat_ws(' ', name, mode, scope, token), ', ') FROM coord.locks},
    'coord.leases' => q{SELECT string_agg(concat_ws(' ', name, owner, token), ', ') FROM coord.leases},
    'the rows of leases' => q{SELECT string_agg(concat_ws(' ', name, owner, token), ', ') FROM coord_internal.lease},
    'what is reserved' => q{SELECT last_value FROM coord_internal.token_floor},
    'pg_locks' => q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'});
  is(one($dbh, $state{'coord.locks'}), "first exclusive session $mine", 'who was refused one has no lock');
  my %before = map { $_ => one($dbh, $state{$_}) } keys %state;
  my $other = session($node, 'app');
  foreach my $of ($dbh, $other)
  {
    foreach my $grant (q{lock('lock')}, q{lock('lock', 'share')}, q{lock('lock', scope => 'session')},
      q{try_lock('lock', scope => 'session')}, q{lock_many('{a,b}', scope => 'session')}, q{lease_acquire('lease', 'me')}, q{leader_campaign('leader', 'me')})
    {
      like(error_of($of, "SELECT * FROM coord.$grant"), qr/^54000 there are no fencing tokens left.*DETAIL:.*$end/s, "then $grant is 54000");
    }
    is(one($of, q{SELECT coord.fence_advance(?)}, $end), 0, 'coord.fence_advance() to the end changes nothing');
    like(error_of($of, q{SELECT coord.fence_advance(?)}, '18014398509481984'), qr/^22023/, 'and beyond it is refused');
  }
  # By which a session knows that its locks are still there: of one that has asked for a session's lock.
  is(one($dbh, $state{$_} . ($_ eq 'pg_locks' ? ' AND pid = pg_backend_pid()' : '')), $before{$_}, "$_: nothing has changed") foreach sort keys %state;
  is(one($dbh, q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid >> 8 <> 80 AND pid = ?}, $other->{pg_pid}), 0,
    'nor has the other session anything');
  is(error_of($dbh, q{SELECT coord.fence_check('first', ?)}, $mine), 'no error', 'the token of a lock is good');
  is(error_of($dbh, q{SELECT coord.fence_check('last', ?)}, $lease), 'no error', 'that of a lease, too');
  is(error_of($dbh, q{SELECT coord.lease_renew('last', ?)}, $lease), 'no error', 'it can be renewed');
  is(release($dbh, 'last', $lease), 1, 'and released');
  is(one($dbh, q{SELECT coord.unlock('first')}), 1, 'the lock is unlocked');
  $other->disconnect;
  restarted('immediate');
  like(error_of($dbh, q{SELECT coord.lock('lock')}), qr/^54000/, 'no token comes again after a restart');
  unlike(slurp_file($node->logfile), qr/PANIC|TRAP:/, 'no crashes');
  $dbh->disconnect;
  $node->stop;
}

done_testing();
