# A proxy between the coordinator and a participant that delays, hangs, drops and
# half-closes; what it obeys is in test/tools/delayproxy.c.
#
#   my $proxy = DelayProxy->new($participant);      # or ->new($participant, 5): round trip in ms
#   # the server's options are then: host => $proxy->host, port => $proxy->port
#   $proxy->tell('on reply drop/1 PREPARE TRANSACTION');
#   ...
#   is($proxy->fired, 1, 'the reply was lost');
#   $proxy->tell($_) foreach 'off', 'go';
package DelayProxy;

use strict;
use warnings FATAL => 'all';
use Carp;
use File::Basename;
use IO::Socket::UNIX;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

my $source = dirname(__FILE__) . '/../tools/delayproxy.c';
my $program;

# Compiled by the first that needs it.
sub program
{
  if (!$program)
  {
    my $file = PostgreSQL::Test::Utils::tempdir . '/delayproxy';
    PostgreSQL::Test::Utils::system_or_bail('cc', '-O2', '-Wall', '-Wextra', '-o', $file, $source);
    $program = $file;
  }
  return $program;
}

sub new
{
  my ($class, $node, $round_trip) = @_;
  my $dir = PostgreSQL::Test::Utils::tempdir_short;
  my $self = bless { port => PostgreSQL::Test::Cluster::get_free_port(), control => "$dir/control" }, $class;
  my $target = $node->host =~ m{^/} ? $node->host . '/.s.PGSQL.' . $node->port : $node->port;
  $self->{run} = IPC::Run::start([ program(), '-c', $self->{control}, '-d', $round_trip // 0, $self->{port}, $target ]);
  $self->tell('status');
  return $self;
}

sub host { return '127.0.0.1' }
sub port { my ($self) = @_; return $self->{port} }

# Tells it a command; the answer, without "ok".  It is in force by then.
sub tell
{
  my ($self, $command) = @_;
  my $end = time + 20;
  my $socket;
  until ($socket = IO::Socket::UNIX->new(Peer => $self->{control}))
  {
    croak "no proxy: $!" if time > $end;
    select undef, undef, undef, 0.02;
  }
  print $socket "$command\n";
  my $answer = <$socket> // 'none';
  close $socket;
  croak "the proxy answers to \"$command\": $answer" if $answer !~ /^ok ?(.*)$/;
  return $1;
}

# How often what was told by "on" has happened, since the last "off".
sub fired
{
  my ($self) = @_;
  return $self->tell('status') =~ /fired=(\d+)/ ? $1 : undef;
}

# How many connections go through it.
sub connections
{
  my ($self) = @_;
  return $self->tell('status') =~ /connections=(\d+)/ ? $1 : undef;
}

sub stop
{
  my ($self) = @_;
  return unless $self->{run};
  $self->tell('quit');
  IPC::Run::finish($self->{run});
  delete $self->{run};
  return;
}

sub DESTROY
{
  my ($self) = @_;
  local ($?, $@);
  eval { IPC::Run::kill_kill($self->{run}) if $self->{run} };
  return;
}

1;
