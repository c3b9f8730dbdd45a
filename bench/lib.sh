# shellcheck shell=bash
# Shared by bench/saga and bench/lock; source it.  It reads the options, builds
# and starts a cluster of its own with fsync on, alternates floor and subject, and
# prints rows of figures and targets.
#
# Who sources it sets ROWS, FLOOR (SQL that makes the floor's tables) and COUNTED
# (those of them whose dead tuples count), has a function row_NAME for each row, and
# SQL for the subject in a file of its own name.  Then: bench_begin "$@", and when
# all functions are there, bench_run.
#
# shellcheck disable=SC2034,SC2153,SC2154
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/lib.sh"

name=${0##*/}

usage() {
  sed -n '2,/^set /{ /^#/s/^# \{0,1\}//p }' "$0"
  exit "$1"
}

# Hooks: what to install or build besides, as the caller; what else to say about the
# rounds; what to do before each measurement.
install_more() { :; }
settings() { :; }
before_counting() { :; }

# Reads the options.  First as the caller: sets up, and runs the script again from
# the copy as the builder.  As the builder it returns.
bench_begin() {
  local var
  pg=$(default_pg)
  quick='' keep=''
  rows=()
  while [ $# -gt 0 ]; do
    case $1 in
      -h | --help) usage 0 ;;
      --list) echo "${ROWS[*]}" && exit ;;
      --keep) keep=1 ;;
      --quick) quick=1 ;;
      --pg) pg=${2:-} && shift ;;
      -*) usage 2 >&2 ;;
      *) [[ " ${ROWS[*]} " == *" $1 "* ]] || die "no row $1 (there are: ${ROWS[*]})"
        rows+=("$1") ;;
    esac
    shift
  done
  suite_of "$pg" >/dev/null

  if [ -z "${COORD_BENCH:-}" ]; then
    # Only COORD_ variables are handed on.
    for var in "${!BENCH_@}"; do export "COORD_$var=${!var}"; done
    if ! host_has "$pg"; then
      run_in_tree "$pg" "../bench/$name" --pg "$pg" ${quick:+--quick} ${keep:+--keep} "${rows[@]}"
      exit
    fi
    # shellcheck disable=SC2046
    install_packages $(server_packages "$pg")
    install_more
    work=$CACHE/bench$pg
    lock_work "$work"
    copy_source "$work/src"
    COORD_BENCH=$work as_builder "$work/src/bench/$name" --pg "$pg" ${quick:+--quick} ${keep:+--keep} "${rows[@]}"
    exit
  fi

  work=$COORD_BENCH
  here=$work/src/bench
  data=$work/data
  bindir=$(pg_bindir "$pg")
  rounds=${COORD_BENCH_ROUNDS:-$(default 5 2)}
  seconds=${COORD_BENCH_SECONDS:-$(default 4 2)}
  [ "$rounds" -gt 0 ] || rounds=1
  [ ${#rows[@]} -gt 0 ] || rows=("${ROWS[@]}")
  errors=0 failed=0
}

# The first, with --quick the second.
default() {
  if [ -n "$quick" ]; then echo "$2"; else echo "$1"; fi
}

### The cluster

remove_cluster() {
  if "$bindir/pg_ctl" -D "$data" status >/dev/null 2>&1; then
    "$bindir/pg_ctl" -D "$data" -s -m immediate stop || true
  fi
  rm -rf "$data"
}

# psql as superuser; tuples only.
sql() {
  "$bindir/psql" -X -q -A -t -F ' ' -v ON_ERROR_STOP=1 -d bench "$@"
}

start_cluster() {
  remove_cluster
  [ ${#data} -lt 85 ] || die "$data is too long a name for a socket's directory"
  note "building for PostgreSQL $pg, without debug points"
  build_and_stage "$pg" "$work" >"$work/make.out" 2>&1 || { cat "$work/make.out" && die "cannot be built"; }
  note "starting a cluster in $data"
  trap remove_cluster EXIT
  "$bindir/initdb" -D "$data" -U postgres -A trust -E UTF8 --no-sync >/dev/null
  {
    stage_settings "$pg" "$work/stage"
    cat <<END
shared_preload_libraries = 'coord'
listen_addresses = ''
unix_socket_directories = '$data'
cluster_name = 'coord bench'
max_worker_processes = 20
fsync = on
synchronous_commit = on
shared_buffers = 256MB
max_wal_size = 4GB
wal_keep_size = 2GB
END
  } >>"$data/postgresql.conf"
  sync -f "$data"
  "$bindir/pg_ctl" -D "$data" -s -w -l "$work/log" start || { cat "$work/log" && exit 1; }
  export PGHOST=$data
  export PGUSER=postgres
  "$bindir/psql" -X -q -v ON_ERROR_STOP=1 -d postgres -c "CREATE ROLE bench LOGIN" -c "CREATE DATABASE floor"
  "$bindir/psql" -X -q -v ON_ERROR_STOP=1 -d floor -f "$here/$FLOOR"
}

# Each row has a database of its own, so that none inherits another's bloat.
fresh_database() {
  "$bindir/psql" -X -q -v ON_ERROR_STOP=1 -d postgres -c "SET client_min_messages = warning" \
    -c "DROP DATABASE IF EXISTS bench WITH (FORCE)" \
    -c "CREATE DATABASE bench TEMPLATE floor" -c "ALTER SYSTEM RESET coord.max_workers" \
    -c "SELECT pg_reload_conf()" >/dev/null
  sql -c "SET client_min_messages = warning" -c "CREATE EXTENSION coord" -f "$here/$name.sql" \
    >/dev/null
}

### Counters: commits, WAL and dead tuples between two points

# The last number is that of commits up to now, this one not included.
counters() {
  sql -c "SELECT pg_current_wal_insert_lsn(), pg_current_wal_insert_lsn() - '0/0',
            (SELECT coalesce(sum(n_tup_upd + n_tup_del), 0) FROM pg_stat_user_tables
             WHERE schemaname = 'coord_internal' OR relname IN ($COUNTED)),
            xact_commit
          FROM pg_stat_database WHERE datname = 'bench'"
}

begin_counting() {
  before_counting
  read -r -a before < <(counters)
  own_commits=1
}

# Sets commits, written (those of them that wrote something), wal and dead, per
# one of $1 units.  Idle workers report at once, clients when they end.
end_counting() {
  local after
  read -r -a after < <(counters)
  wal=$(calc "(${after[1]} - ${before[1]}) / $1")
  dead=$(calc "(${after[2]} - ${before[2]}) / $1")
  commits=$(calc "(${after[3]} - ${before[3]} - $own_commits) / $1")
  written=$("$bindir/pg_waldump" -p "$data/pg_wal" -s "${before[0]}" -e "${after[0]}" \
    -r Transaction --stats=record 2>&1 | awk '$1 == "Transaction/COMMIT" { print $2 }') || true
  written=$(calc "${written:-0} / $1")
}

calc() {
  awk "BEGIN { printf \"%.6g\n\", ($1) }"
}

is_true() {
  awk "BEGIN { exit !($1) }"
}

# pgbench as the ordinary role; sets transactions, tps, connecting (seconds).
bench() {
  local out
  out=$(PGUSER=bench "$bindir/pgbench" -n -M prepared "$@" bench 2>&1) || { echo "$out" >&2 && exit 1; }
  transactions=$(sed -n 's/^number of transactions actually processed: \([0-9]*\).*/\1/p' <<<"$out")
  tps=$(sed -n 's/^tps = \([0-9.]*\).*/\1/p' <<<"$out")
  connecting=$(sed -n 's/^initial connection time = \([0-9.]*\) ms/\1/p' <<<"$out")
  connecting=$(calc "${connecting:-0} / 1000")
}

### Rows

# Measurements of the row at hand: a file for floor and one for subject, a line a
# round.
record() {
  echo "$rate $commits $written $wal $dead" >>"$work/$1.data"
}

median() {
  cut -d ' ' -f "$2" "$work/$1.data" | sort -g | awk '{ v[NR] = $1 }
    END { printf "%.6g\n", (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2 }'
}

# Alternates the commands $1 and $2; sets floor, subject and ratio from the
# medians.  Gives up when the work was not done.
alternate() {
  local i
  rm -f "$work/floor.data" "$work/subject.data"
  for ((i = 0; i < ${3:-$rounds} && errors == 0; i++)); do
    $1
    record floor
    $2
    record subject
  done
  floor=$(median floor 1)
  subject=$(median subject 1)
  ratio=$(calc "$subject / $floor")
}

# A number with three digits at least, no exponent.
show() {
  awk "BEGIN { x = $1; printf x < 10 ? \"%.2f\" : x < 100 ? \"%.1f\" : \"%.0f\", x }"
}

# line TITLE FLOOR SUBJECT UNIT RATIO TARGET CONDITION; without a target there is no
# verdict either.
line() {
  local verdict=MISSED
  if is_true "$7"; then verdict=met; fi
  if [ -z "$6" ]; then verdict=''; fi
  if [ "$errors" -gt 0 ]; then verdict=ERROR; fi
  printf '%-40s %8s %8s %-7s %8s %9s  %s\n' "$1" "$2" "$3" "$4" "$5" "$6" $verdict
}

# What a unit (saga, step or pair) cost, and the rounds behind the medians.
costs() {
  printf '  %-7s commits %s (%s wrote), WAL %.0f B, dead tuples %s;' "$2" \
    "$(show "$(median "$1" 2)")" "$(show "$(median "$1" 3)")" "$(median "$1" 4)" "$(show "$(median "$1" 5)")"
  each_round "$1"
}

each_round() {
  printf ' rounds:'
  while read -r rate _; do printf ' %s' "$(show "$rate")"; done <"$work/$1.data"
  echo
}

# compare TITLE TARGET UNIT FLOOR SUBJECT
compare() {
  alternate "$4" "$5"
  line "$1" "$(show "$floor")" "$(show "$subject")" "$3" "$(show "$ratio") x" ">= $2 x" "$ratio >= $2"
  costs subject coord
  costs floor floor
}

### Run

bench_run() {
  local row
  start_cluster
  echo
  echo "$(sql -d postgres -c 'SHOW server_version') on $(nproc) cores," \
    "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), load $(cut -d ' ' -f 1 /proc/loadavg)"
  "$bindir/pg_test_fsync" -s 1 -f "$data/fsync_test" 2>/dev/null |
    awk '/^ *fdatasync/ { print "one fdatasync of 8 kB: " $4, "us"; exit }' || true
  rm -f "$data/fsync_test"
  settings
  echo
  printf '%-40s %8s %8s %-7s %8s %9s\n' figure floor coord "" ratio target
  for row in "${rows[@]}"; do
    fresh_database
    "row_$row"
    failed=$((failed + errors))
    errors=0
  done
  echo
  if [ -n "$keep" ]; then
    trap - EXIT
    echo "The cluster goes on running: $bindir/psql -h $data -U postgres bench"
  fi
  if [ "$failed" -gt 0 ]; then
    echo "in $failed of the rows the work was not done as it should be"
    exit 1
  fi
}
